# CPU image of bst. Build: docker build -t bst .   Run: docker run --rm bst
FROM python:3.11.14-slim-bookworm AS build
WORKDIR /app
COPY requirements.txt .
RUN python -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir \
    --extra-index-url https://download.pytorch.org/whl/cpu -r requirements.txt

FROM python:3.11.14-slim-bookworm
RUN useradd --create-home --uid 1000 bst
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY --chown=bst:bst . .
RUN chown bst:bst /app /app/data
USER 1000
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
CMD ["python", "scripts/train.py"]

# CPU image of bst, without the tests; runs stay in the volume at /app/runs. How to use it: README.md.
FROM python:3.11.14-slim-bookworm AS build
WORKDIR /app
COPY requirements.txt .
RUN sed -E '/^(pytest|pandas|hypothesis|ruff)==/d' requirements.txt > image.txt \
    && python -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir \
    --extra-index-url https://download.pytorch.org/whl/cpu -r image.txt

FROM python:3.11.14-slim-bookworm
RUN useradd --create-home --uid 1000 bst
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY --chown=bst:bst . .
RUN install -d -o bst -g bst /app /app/data /app/runs
USER 1000
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
VOLUME ["/app/data", "/app/runs"]
EXPOSE 8000
CMD ["python", "scripts/train.py"]

"""POST /history: ratings in a file, read as `recommend.py --history` reads them, for the page."""

import asyncio
import tempfile
from pathlib import Path

from fastapi import FastAPI, Request, Response

from bst.recommend.recommender import Recommender
from bst.serving.gate import reply
from bst.serving.worker import Models
from bst.utils.errors import DataError
from scripts.support.history import read_history


def add_history(app: FastAPI, models: Models) -> None:
    """Add the route to a service of these models."""
    @app.post("/history", include_in_schema=False)
    async def history(request: Request) -> Response:
        """The films of a file with their stars, the oldest rating first, and what was left out."""
        content = await request.body()
        return reply(await asyncio.to_thread(read_upload, content, models.current.recommender))


def read_upload(content: bytes, recommender: Recommender) -> dict:
    """The JSON answer to a file; errors name its lines.

    Raises:
        DataError: it is no file of ratings, or of films that are all unknown.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_bytes(content)
        try:
            events, notes = read_history(path, recommender, skip_unknown=True)
            person = recommender.person(events)
        except DataError as error:
            said = str(error).replace(f"--history {path}", "the file").replace(f"{path}:", "line ")
            raise DataError(said) from error
    notes = [note.replace(f"{path}:", "line ") for note in (*notes, *person.notes)]
    return {"notes": notes, "items": [
        recommender.catalogue.about(item) | {"stars": stars}
        for item, stars in zip(person.item.tolist(), person.rating.tolist(), strict=True)]}

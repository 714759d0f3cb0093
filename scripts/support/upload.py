"""What POST /history answers: ratings in a file, read as `recommend.py --history` reads them."""

import tempfile
from pathlib import Path

from bst.recommend.recommender import Recommender
from bst.utils.errors import DataError
from scripts.support.history import read_history


def read_upload(content: bytes, recommender: Recommender) -> dict:
    """The items of a file with their stars, the oldest rating first, and what was left out.

    Raises:
        DataError: it is no file of ratings, or all its items are unknown; names the line.
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

"""Recommend films to a person, or explain a prediction, with a run that train.py left.

The person is a user of the run's data (--user) or anybody with a CSV file of ratings (--history).
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bst.utils.errors import DataError
from bst.utils.guard import command
from scripts.support.flags import RunFolder


@dataclass(frozen=True)
class Args:
    """Print the top films for one person."""

    model: RunFolder
    """run folder"""
    user: str | None = None
    """id of a user of the data that the run was trained on"""
    history: Path | None = None
    """CSV file with the columns title (and year) or movie_id, stars and, if known, time; or an
    export of Letterboxd or IMDb"""
    skip_unknown: bool = False
    """leave out films of --history that are not found, and list them"""
    about: tuple[str, ...] = ()
    """of the person of --history, as in users.dat: any of sex=F age=25 occupation=4 zip=55117"""
    k: int = 10
    """films to recommend"""
    by: Literal["stars", "interest", "both"] = "stars"
    """stars: what the person would rate highest; interest: what the person is most likely to rate
    next; both: the sum, log share plus stars. The last two need a run trained with --interest"""
    genres: tuple[str, ...] = ()
    """only films with any of these genres"""
    years: tuple[int, int] | None = None
    """first and last release year"""
    reasons: int = 2
    """events of the history to name for each film"""
    explain: str | None = None
    """title or id of a film: say what each event of the history does to its prediction"""
    json: Path | None = None
    """also write {"items": [{movie_id, title, stars, reasons, chance}]} to this file; -: print
    only that"""


def main(args: Args) -> None:
    """Load, score, print."""
    from bst.recommend.recommender import Recommender
    from bst.recommend.users import Users
    from bst.run import store_of
    from scripts.support.history import read_history
    from scripts.support.titles import film_of

    if (args.user is None) == (args.history is None):
        raise DataError("expected --user or --history, and one of them only")
    if args.user is not None and args.about:
        raise DataError("--about beside --user: the data say who that is; leave it out")
    recommender = Recommender.from_pretrained(args.model)
    if args.history is not None:
        events, notes = read_history(args.history, recommender, skip_unknown=args.skip_unknown)
        person = recommender.person(events, user=dict(word.partition("=")[::2]
                                                      for word in args.about))
        print(*notes, *person.notes, sep="\n", end="\n" * bool(notes or person.notes),
              file=sys.stderr)
    else:
        person = Users(recommender, store_of(args.model)).person(args.user)
    if args.explain is not None:
        items = [recommender.explain(person, film_of(recommender.catalogue, args.explain))]
        lines = explanation_lines(items[0], len(person))
    else:
        items = recommender.recommend(person, args.k, genres=args.genres, years=args.years,
                                      reasons=args.reasons, by=args.by)
        lines = table_lines(items)
    known = [{name: value for name, value in asdict(item).items() if value is not None}
             for item in items]
    written = json.dumps({"items": known}, indent=1)
    if str(args.json) == "-":
        print(written)
        return
    print("\n".join([f"{len(person)} ratings known", *lines]))
    if args.json is not None:
        args.json.write_text(written + "\n")


def table_lines(items: list) -> list[str]:
    """A line a film: rank, chance if known, predicted stars, title, what raised the stars."""
    with_chance = any(item.chance is not None for item in items)
    head = f"{'chance':>7} " if with_chance else ""
    lines = [f"{'':>3} {head}{'stars':>5}  {'film':<48} because of your rating of"]
    for rank, item in enumerate(items, start=1):
        why = ", ".join(f"{r.title} ({r.rating:g}, {r.difference:+.2f})" for r in item.reasons)
        chance = f"{item.chance:>7.2%} " if with_chance else ""
        lines.append(f"{rank:>3} {chance}{item.stars:>5.2f}  {item.title[:48]:<48} {why}".rstrip())
    return lines


def explanation_lines(found, num_ratings: int) -> list[str]:
    """A line an event, the largest effect first."""
    rated = "" if found.rated is None else f" (you rated it {found.rated:g})"
    tried = len(found.reasons)
    which = "each rating" if tried == num_ratings else f"each of the newest {tried} ratings"
    lines = [f"{found.title}: {found.stars:.2f} stars{rated}. What {which} did to it:",
             f"{'effect':>7} {'stars':>5}  film"]
    lines += [f"{reason.difference:>+7.3f} {reason.rating:>5g}  {reason.title}"
              for reason in found.reasons]
    return [*lines, "effect: prediction with all ratings minus without this one, exactly"]


if __name__ == "__main__":
    command(main, Args, __doc__)

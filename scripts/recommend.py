"""Recommend items to a person, or explain a prediction, with a run that train.py left.

The person is a user of the run's data (--user) or anybody with a CSV file of ratings (--history);
or everybody in the data (--all-users).
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bst.config import RankBy
from bst.utils.errors import DataError
from scripts.support.command import command
from scripts.support.flags import RunFolder


@dataclass(frozen=True)
class Args:
    """Print the top items for one person."""

    run: RunFolder
    """run folder"""
    user: str | None = None
    """id of a user of the data that the run was trained on"""
    all_users: bool = False
    """all users of that data, in one table: user_id, item_id, rank, score; needs --out"""
    out: Path | None = None
    """file of that table: .parquet, or .csv"""
    exact: bool = False
    """score every item with the whole network; default: a shortlist, which has the same top 10 for
    99.9 % of people"""
    history: Path | None = None
    """CSV file with the columns title (and year) or movie_id, stars and, if known, time; or an
    export of Letterboxd or IMDb"""
    skip_unknown: bool = False
    """leave out items of --history that are not found, and list them"""
    about: tuple[str, ...] = ()
    """of the person of --history, as in users.dat: any of sex=F age=25 occupation=4 zip=55117"""
    k: int = 10
    """items to recommend"""
    by: RankBy = "stars"
    """stars: what the person would rate highest; interest: what the person is most likely to rate
    next; both: the sum, log share plus stars. The last two need a run trained with --interest"""
    genres: tuple[str, ...] = ()
    """only items with any of these genres"""
    years: tuple[int, int] | None = None
    """first and last release year"""
    reasons: int = 2
    """events of the history to name for each item"""
    explain: str | None = None
    """title or id of an item: say what each event of the history does to its prediction"""
    json: Path | None = None
    """also write {"items": [{movie_id, title, stars, reasons, rated, chance}]} to this file,
    without the last two where there are none; -: print only that"""


def main(args: Args) -> None:
    """Load, score, print."""
    from bst.recommend.recommender import Recommender
    from bst.recommend.users import Users
    from bst.run import store_of
    from scripts.support.history import read_history
    from scripts.support.lists import explanation_lines, table_lines, write_all
    from scripts.support.titles import item_of

    if (args.user is not None) + (args.history is not None) + args.all_users != 1:
        raise DataError("expected --user, --history or --all-users, and one of them only")
    if args.user is not None and args.about:
        raise DataError("--about beside --user: the data say who that is; leave it out")
    recommender = Recommender.from_pretrained(args.run)
    if args.all_users:
        write_all(Users(recommender, store_of(args.run)), args.out, args.k, genres=args.genres,
                  years=args.years, by=args.by, exact=args.exact)
        return
    if args.history is not None:
        events, notes = read_history(args.history, recommender, skip_unknown=args.skip_unknown)
        person = recommender.person(events, user=dict(word.partition("=")[::2]
                                                      for word in args.about))
        for note in (*notes, *person.notes):
            print(note, file=sys.stderr)
    else:
        person = Users(recommender, store_of(args.run)).person(args.user)
    if args.explain is not None:
        items = [recommender.explain(person, item_of(recommender.catalogue, args.explain))]
        lines = explanation_lines(items[0], len(person))
    else:
        items = recommender.recommend(person, args.k, genres=args.genres, years=args.years,
                                      reasons=args.reasons, by=args.by, exact=args.exact)
        lines = table_lines(items)
    shown = [{name: value for name, value in asdict(item).items() if value is not None}
             for item in items]
    written = json.dumps({"items": shown}, indent=1)
    if str(args.json) == "-":
        print(written)
        return
    print("\n".join([f"{len(person)} ratings known", *lines]))
    if args.json is not None:
        args.json.write_text(written + "\n")


if __name__ == "__main__":
    command(main, Args, __doc__)

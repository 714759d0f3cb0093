"""What clients of the service send and get: JSON bodies, each with its limits."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from bst.config import RankBy
from bst.recommend.person import Interaction
from bst.recommend.recommender import Explanation, Reason
from bst.utils.errors import DataError

HISTORY, EXPLAINED = 1000, 300  # events; reasons cost the square of their number
MOVIES, TOP, REASONS = 1000, 100, 5  # most of each in one request


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


MovieId = Annotated[int | str, Field(examples=[1], description='"1" and 1 are one')]
RATED = Field(None, description="stars of the item in the history; they are the answer then")
Seconds = Annotated[int, Field(description="seconds since 1970 UTC, of 1990 to 2050")]


class Rated(_Strict):
    """One rating of a history."""

    movie_id: MovieId
    stars: float = Field(examples=[4.0], description="on the scale of the data, see /readyz")
    time: Seconds | None = Field(None, examples=[978300760])


class About(_Strict):
    """Features of the person, coded as in users.dat."""

    sex: str | None = Field(None, max_length=20, examples=["F"])
    age: str | None = Field(None, max_length=20, examples=["25"])
    occupation: str | None = Field(None, max_length=20, examples=["4"])
    zip: str | None = Field(None, max_length=20, examples=["55117"])


class Asked(_Strict):
    """The person that a request is about."""

    history: list[Rated] = Field(
        default=[], max_length=HISTORY,
        description="the last rating of an item counts; give a time to all events or to none; "
                    "without times they count as rated in this order, a minute apart")
    user: About = About()
    at: Seconds | None = Field(None, description="default: a second after the last rating")

    def arguments(self, *, explained: bool = False) -> dict[str, Any]:
        """Arguments of the recommender's calls."""
        if explained and len(self.history) > EXPLAINED:
            raise DataError(f"history: {len(self.history)} events, expected at most {EXPLAINED} "
                            "where reasons are asked for")
        events = [Interaction(event.movie_id, event.stars, event.time) for event in self.history]
        return {"history": events, "user": self.user.model_dump(exclude_none=True), "at": self.at}


class AskRecommend(Asked):
    """The best items."""

    by: RankBy | None = Field(None, description="default: the first that /readyz names")
    k: int = Field(10, ge=1, le=TOP)
    exclude_seen: bool = True
    genres: list[Annotated[str, Field(max_length=50)]] = Field([], max_length=50)
    years: list[int] | None = Field(None, min_length=2, max_length=2, examples=[[1980, 1999]])
    reasons: int = Field(0, ge=0, le=REASONS, description="events to name for each item")


class AskPredict(Asked):
    """Expected stars of items."""

    movies: list[MovieId] = Field(max_length=MOVIES)


class AskExplain(Asked):
    """What each event of the history does to a prediction."""

    movie_id: MovieId


class Answer(BaseModel):
    """What comes with each answer."""

    notes: list[str] = Field(description="what was changed in the history as it was sent")
    model: str = Field(examples=["9f86d081"], description="which weights answered")


class Movie(BaseModel):
    """An item of the catalogue."""

    movie_id: int | str
    title: str
    year: int | None
    genres: list[str]
    overview: str | None = Field(description="its beginning")
    ratings: int = Field(description="their number in the train part")


class Recommended(Movie):
    """An item of a list."""

    stars: float = Field(description="expected")
    reasons: list[Reason]
    chance: float | None = Field(description="by interest or both: share in what is rated next")
    rated: float | None = RATED


class Top(Answer):
    """Items, best first."""

    by: str = Field(examples=["stars"], description="they are ranked by stars, interest or both")
    items: list[Recommended]


class Stars(BaseModel):
    """Expected stars of one item."""

    movie_id: int | str
    stars: float
    rated: float | None = RATED


class Predictions(Answer):
    """Expected stars in the order of the request."""

    items: list[Stars]


@dataclass(frozen=True, kw_only=True)
class Explained(Explanation):
    """An explanation; the rest as in `Answer`."""

    notes: list[str]
    model: str


class Movies(BaseModel):
    """Items that were searched for."""

    items: list[Movie]


class Error(BaseModel):
    """Every error."""

    error: str = Field(examples=["history[0].stars: 6 stars, expected one of 1, 2, 3, 4, 5"])


RESPONSES = {code: {"model": Error, "description": text} for code, text in {
    400: "JSON cannot be read from the body", 408: "the body took too long",
    413: "the body is too large", 415: "the content type is not JSON",
    422: "the request is wrong; the line says where", 429: "too many requests wait",
    503: "not served in time"}.items()}

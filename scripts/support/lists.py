"""What scripts/recommend.py prints."""


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

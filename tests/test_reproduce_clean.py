"""What the README says is found and compared. Run: pytest tests/test_reproduce_clean.py."""

import pytest

from scripts.reproduce_clean import ROOT, commands, differences

README = """## Five-minute start

```bash
pip install a && python b
```

```text
n = 146, seed 0
bst   0.7670  0.6611-0.8992
bst minus bias: MAE +0.0102 [-0.0458, +0.0783]
```

```bash
pip install a && pytest
```

## Other

```bash
rm
```
"""
PRINTED = """noise
n = 146, seed 0
bst  0.7671   0.6611-0.8990
bst minus bias: MAE +0.0102 [-0.0458, +0.0783]
"""


def test_commands_are_those_of_the_section_with_what_they_print():
    (first, expected), (second, nothing) = commands(README)
    assert first == "pip install a && python b" and second == "pip install a && pytest"
    assert expected.splitlines()[0] == "n = 146, seed 0" and nothing is None
    assert commands("# no section") == []
    assert commands((ROOT / "README.md").read_text())[0][0] == (
        "pip install -r requirements.txt && python scripts/train.py")
    assert differences(expected, PRINTED, 0.001) == []
    assert len(differences(expected, PRINTED, 0.00005)) == 1


@pytest.mark.parametrize(("old", "new"), [
    ("0.7671", "0.7871"), ("n = 146", "n = 145"), ("+0.0102", "-0.0102"), ("bias", "mean"),
    ("-0.0458", "-0.0558"), ("0.8990", "0.9990"), ("seed 0\n", "\n"), (PRINTED, "bst\n"),
])
def test_numbers_may_differ_by_the_tolerance_and_words_not_at_all(old, new):
    assert differences(commands(README)[0][1], PRINTED.replace(old, new), 0.001)

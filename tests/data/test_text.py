"""BERT vectors with the packaged MiniLM. Run: pytest tests/data/test_text.py."""

import shutil

import numpy as np
import pytest
import torch

import bst.data.text
from bst.data.text import embed_texts, pool
from tests.conftest import refused

TEXTS = ["A captain and a storm.", None, "Two lovers meet again in Vienna after many years.", "  "]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """The texts' vectors, and the folder of their cache."""
    folder = tmp_path_factory.mktemp("cache")
    return embed_texts(TEXTS, cache_dir=folder), folder


def test_pooling_equals_plain_loops():
    torch.manual_seed(0)
    states = tuple(torch.randn(3, 5, 7) for _ in range(4))
    is_real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    for pooling, used in (("mean-last-two", (2, 3)), ("last", (3,)), ("second-to-last", (2,))):
        found = pool(states, is_real, pooling)
        for b, length in enumerate((5, 2, 3)):
            expected = sum(states[k][b, s] for k in used for s in range(length))
            torch.testing.assert_close(found[b], expected / len(used) / length)


def test_a_vector_is_that_of_transformers_and_its_bits_depend_on_the_text_alone(embedded, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    alone = embed_texts(TEXTS[:1], cache_dir=tmp_path).vectors[0]
    assert embedded[0].vectors[0].tobytes() == alone.tobytes()
    folder = bst.data.text.encoder_folder(None)
    model = AutoModel.from_pretrained(folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS[0], return_tensors="pt")
    with torch.no_grad():
        states = model(**tokens, output_hidden_states=True).hidden_states
    expected = (states[-1] + states[-2])[0].mean(0) / 2
    np.testing.assert_allclose(alone, expected.numpy(), atol=1e-5)


def test_the_cache_gives_the_same_bytes_without_loading_the_model(embedded, monkeypatch):
    first, folder = embedded
    assert first.has_text.tolist() == [True, False, True, False]
    assert first.vectors.any(axis=1).tolist() == first.has_text.tolist()
    monkeypatch.setattr(bst.data.text, "load_encoder", lambda folder: pytest.fail("loaded again"))
    assert embed_texts(TEXTS, cache_dir=folder).vectors.tobytes() == first.vectors.tobytes()


def test_an_interrupted_run_embeds_only_the_rest(tmp_path, monkeypatch):
    texts = [f"A film about {k}." for k in range(7)]
    monkeypatch.setattr(bst.data.text, "TEXTS_PER_FILE", 3)
    embed, asked = bst.data.text.embed_text, []

    def count(text, *how):
        asked.append(text)
        if len(asked) == 7:
            raise KeyboardInterrupt
        return embed(text, *how)

    monkeypatch.setattr(bst.data.text, "embed_text", count)
    with pytest.raises(KeyboardInterrupt):
        embed_texts(texts, cache_dir=tmp_path)
    embed_texts(texts, cache_dir=tmp_path)
    assert asked[7:] == asked[6:7]


def test_a_damaged_cache_file_is_named_and_made_again(embedded, tmp_path, capsys):
    first = embedded[0]
    shutil.copytree(embedded[1], tmp_path, dirs_exist_ok=True)
    path = next(tmp_path.glob("*-alone/*.safetensors"))
    path.write_bytes(path.read_bytes()[:-4] + b"oops")
    assert embed_texts(TEXTS, cache_dir=tmp_path).vectors.tobytes() == first.vectors.tobytes()
    assert "damaged" in capsys.readouterr().err


def test_another_pooling_has_its_own_vectors_and_cache(embedded):
    first, folder = embedded
    before = len(list(folder.iterdir()))
    other = embed_texts(TEXTS, pooling="last", cache_dir=folder)
    assert np.abs(first.vectors - other.vectors).max() > 0.01
    assert len(list(folder.iterdir())) == before + 1


def test_an_encoder_that_is_not_there_or_another_or_not_safetensors_is_refused(
        tmp_path, monkeypatch):
    monkeypatch.setattr(bst.data.text, "PACKAGED_SHA256", "0" * 64)
    for bert, told in ((None, "sha256 53aa51172d14..., expected 000000000000..."),
                       ("no-such/model", "neither a folder nor in the local Hugging Face cache"),
                       (str(tmp_path), "no model.safetensors there")):
        with refused(told):
            embed_texts(TEXTS, bert=bert, cache_dir=tmp_path)


def test_without_any_text_no_encoder_is_needed_and_a_cache_does_not_matter(embedded, monkeypatch):
    monkeypatch.setattr(bst.data.text, "PACKAGED_SHA256", "0" * 64)
    found = embed_texts([None, " "], cache_dir=embedded[1])
    assert found.vectors.shape == (2, 1) and not found.vectors.any() and not found.has_text.any()


def test_any_bert_folder_works(tmp_path):
    from transformers import BertConfig, BertModel, BertTokenizerFast

    (tmp_path / "vocab.txt").write_text("\n".join(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "captain", "and", "storm", "."]))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    BertModel(BertConfig(vocab_size=10, hidden_size=24, num_hidden_layers=3, num_attention_heads=3,
                         intermediate_size=31)).save_pretrained(tmp_path / "bert")
    found = embed_texts(TEXTS, bert=str(tmp_path / "bert"), cache_dir=tmp_path / "cache")
    assert found.vectors.shape == (4, 24) and found.vectors[0].any()

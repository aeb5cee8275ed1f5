"""From a hub id to a folder: config first, then what is to come by size, then the files, safetensors only.

Whatever stops it is one ValueError with the next step. No remote code is ever run and no pickled file fetched.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm import tqdm
from transformers import AutoConfig, PreTrainedConfig

from . import sound
from .loading import Progress, Tell, gib

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NEEDED = {  # what a model has beside its weights: any one file of each
    "config": ("config.json",),
    "tokenizer": ("tokenizer.json", "tokenizer.model"),
    "image processor": ("preprocessor_config.json", "processor_config.json"),
}
BESIDE = (".json", ".jinja", ".model", ".txt")  # small files of a model; never .bin, .pt or .py
LAID_OUT = "take a checkpoint laid out for transformers, such as those of llava-hf"
PAUSE = 0.2  # seconds between two reports of one file
RECONNECT = "connect once so that it can be fetched, or give a folder"
Wanted = Callable[[list[str], str], list[str]]


def read_config(place: str, revision: str | None, tell: Tell) -> PreTrainedConfig:
    """The configuration of a folder or hub id; of the hub this one file is fetched."""
    tell(Progress("config", 0, 1, "config.json"))
    if Path(place).is_dir():
        folder = Path(place)
        if revision:
            raise ValueError(f"a revision belongs to a hub id, and {place} is a folder: leave it out")
        if not (folder / "config.json").is_file():
            raise ValueError(f"the folder {place} holds no config.json: give a folder written by save_pretrained")
    else:
        with explained(place, revision):
            folder = Path(hf_hub_download(place, "config.json", revision=revision)).parent
    sound.settings(folder / "config.json", place)
    with sound.told(f"config.json of {place}", LAID_OUT):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def fetched(place: str, revision: str | None, tell: Tell) -> Path:
    """The folder of a model, every file there; what a cache does not hold yet is fetched."""
    if Path(place).is_dir():
        refuse_incomplete(files_of(Path(place)), place)
    folder = Path(place) if Path(place).is_dir() else from_hub(place, revision, tell, of_model)
    sound.refuse_settings(folder, place)
    for name in [WEIGHTS] if (folder / WEIGHTS).is_file() else sound.refuse_shards(folder, INDEX, place):
        sound.refuse_weights(folder / name, place)
    return folder


def from_hub(place: str, revision: str | None, tell: Tell, wanted: Wanted) -> Path:
    """The folder in the usual cache. `wanted(names, place)`: which files of a repository are needed, or a refusal."""
    if constants.HF_HUB_OFFLINE:
        return _cached(place, revision, wanted)
    with explained(place, revision):
        try:
            found = HfApi().model_info(place, revision=revision, files_metadata=True)
        except HfHubHTTPError:
            raise
        except HTTPError:  # no answer at all: what an earlier run fetched may be whole
            return _cached(place, revision, wanted)
        sizes = {file.rfilename: file.size or 0 for file in found.siblings}
        names = wanted(list(sizes), place)
        new = [n for n in names if not isinstance(try_to_load_from_cache(place, n, revision=found.sha), str)]
        refuse_full_disk(place, sum(sizes[name] for name in new))
        meter = Meter(tell, {name: sizes[name] for name in new})
        for name in new:
            hf_hub_download(place, name, revision=found.sha, tqdm_class=meter.bar(name))
            meter.ended(name)
        return Path(try_to_load_from_cache(place, names[0], revision=found.sha)).parent


def _cached(place: str, revision: str | None, wanted: Wanted) -> Path:
    """The folder that an earlier run left, whole; without a request."""
    first = try_to_load_from_cache(place, "config.json", revision=revision)
    first = first if isinstance(first, str) else try_to_load_from_cache(place, "adapter_config.json", revision=revision)
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
    if not isinstance(first, str):
        raise ValueError(f"{why} and {place} is not in the cache {constants.HF_HUB_CACHE}: {RECONNECT}")
    folder = Path(first).parent
    try:
        wanted(files_of(folder), place)
        if not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
            sound.refuse_shards(folder, INDEX, place)
    except ValueError as error:
        raise ValueError(f"{why} and the cache holds only part of {place} ({error}): {RECONNECT}") from error
    return folder


def of_model(names: list[str], where: str) -> list[str]:
    """The files of a model, config first; ValueError where one is lacking."""
    refuse_incomplete(names, where)
    small = [name for name in names if name.removeprefix("clip/").endswith(BESIDE) and _near(name) and name != INDEX]
    if WEIGHTS in names:
        large = [WEIGHTS]
    else:
        large = [INDEX, *(name for name in names if name.startswith("model-") and name.endswith(".safetensors"))]
    large += [name for name in names if name == "clip/" + WEIGHTS]
    return sorted(small, key=lambda name: name != "config.json") + large


def _near(name: str) -> bool:
    """At the top, or of the CLIP text tower that stands beside a model."""
    return "/" not in name.removeprefix("clip/")


def files_of(folder: Path) -> list[str]:
    """Names of all files below a folder."""
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]


# ---- refusals


def refuse_incomplete(names: list[str], where: str) -> None:
    """ValueError where a model's files lack its weights in safetensors, its config, tokenizer or image processor."""
    if not {WEIGHTS, INDEX} & set(names):
        pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
        what = f"only pickled ones ({pickled[0]}), which may run code when opened" if pickled else "none at all"
        raise ValueError(
            f"{where} has no weights in safetensors, {what}: take a repository that has, such as those of llava-hf, "
            "or load it once with transformers and save_pretrained it to a folder"
        )
    for what, either in NEEDED.items():
        if not set(either) & set(names):
            raise ValueError(
                f"{where} has no {what} ({' or '.join(either)}): save model and processor with save_pretrained into "
                "one folder, or take a repository laid out for transformers, such as those of llava-hf"
            )


def refuse_full_disk(place: str, needed: int) -> None:
    """ValueError where the cache's disk has no room for what is still to come."""
    folder = Path(constants.HF_HUB_CACHE)
    while not folder.is_dir():
        folder = folder.parent
    left = shutil.disk_usage(folder).free
    if needed > left:
        raise ValueError(
            f"{place} needs {gib(needed)} GiB more on disk and {gib(left)} GiB are free at {folder}: free "
            f"{gib(needed - left)} GiB, or set HF_HOME to a folder on a larger disk"
        )


@contextmanager
def explained(place: str, revision: str | None) -> Iterator[None]:
    """What the hub's client raises, as one ValueError with the next step."""
    page = f"{constants.ENDPOINT}/{place}"
    try:
        yield
    except GatedRepoError as error:
        raise ValueError(
            f"{place} is gated: accept its terms at {page}, then log in here with `hf auth login` or set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(f"{place} has no revision {revision!r}: see {page}/tree/main for branches and tags") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ValueError(
            f"there is no repository {place} on the hub, or it is private: check the name, or `hf auth login`"
        ) from error
    except OfflineModeIsEnabled as error:
        raise ValueError(f"HF_HUB_OFFLINE is set and {place} is not in the cache: {RECONNECT}") from error
    except LocalEntryNotFoundError as error:
        why = (
            "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"the hub ({constants.ENDPOINT}) cannot be reached"
        )
        raise ValueError(f"{why} and {place} is not in the cache {constants.HF_HUB_CACHE}: {RECONNECT}") from error
    except EntryNotFoundError as error:
        raise ValueError(
            f"{place} has no config.json: take a repository laid out for transformers, such as those of llava-hf"
        ) from error
    except HTTPError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"the download of {place} broke off ({reason}): run it again, it goes on where it was"
        ) from error


# ---- progress


class Meter:
    """Bytes of a download that came so far, told a few times a second. The client counts in progress bars, one or two
    a file, so each file's furthest bar counts."""

    def __init__(self, tell: Tell, sizes: dict[str, int]):
        self.tell, self.sizes, self.total = tell, sizes, sum(sizes.values())
        self.whole, self.came, self.told = 0, 0, 0.0  # bytes of files that ended, of this one, when it was last told

    def bar(self, file: str) -> type[tqdm]:
        """A progress bar class that draws nothing and counts for us."""
        meter = self

        class Bar(tqdm):
            def __init__(self, *arguments, **options):
                super().__init__(*arguments, **options | {"disable": True})
                self.came = options.get("initial") or 0

            def update(self, n=1):
                self.came += n
                meter.count(file, self.came)

        return Bar

    def count(self, file: str, came: float) -> None:
        """`came` bytes of this file are here, by one of its bars."""
        self.came = max(self.came, min(came, self.sizes[file]))
        if time.monotonic() - self.told > PAUSE:
            self._say(file)

    def ended(self, file: str) -> None:
        """This file is here."""
        self.whole, self.came = self.whole + self.sizes[file], 0
        self._say(file)

    def _say(self, file: str) -> None:
        self.told = time.monotonic()
        self.tell(Progress("files", int(self.whole + self.came), self.total, file))

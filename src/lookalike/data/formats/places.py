"""What a person may name, and how each kind is opened: one table."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from lookalike.core.errors import BAD_DATA, IO, USAGE, UserError, of_timm
from lookalike.data.decode import SUFFIXES, one_line
from lookalike.data.example import PictureSource, Source
from lookalike.data.fingerprint import LONG_PIECE, stamps_of_files
from lookalike.data.formats.archives import Archives, TarShard, Zip
from lookalike.data.formats.disk import Disk, Local, Remote
from lookalike.data.formats.encoded import FOR_TEXT, Divided, Encoded, FileStore
from lookalike.data.formats.files import (
    Listing,
    beside_splits,
    by_folder,
    by_split,
    class_folder,
    class_names,
    suffix_of,
    table_split,
    unread,
)
from lookalike.data.formats.lists import LISTS, PathList
from lookalike.data.formats.masks import masks_among, named_masks
from lookalike.data.formats.tables import (
    ArrowFile,
    ParquetFile,
    RowGroups,
    TableFile,
    Tables,
    advise,
    columns_of,
    saved,
)
from lookalike.data.prepared import CANVASES, Cache
from lookalike.data.video.decoder import SUFFIXES as VIDEOS
from lookalike.data.video.source import FrameFolders, VideoList, video_files

HUB = "hub:"
_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?P<folder>(/[\w.-]+)*)(@(?P<revision>[\w./-]+))?")
S = TypeVar("S", bound=Source, covariant=True)
T = TypeVar("T")


class Place(Protocol[S]):
    """A file or folder, listed once."""

    @property
    def splits(self) -> Sequence[str]:
        """Which of train, validation and test exist."""

    def rows(self, split: str | None) -> S:
        """One split, or everything."""


class Folder:
    """Picture files in folders, here or on a remote disk."""

    def __init__(self, disk: Disk, files: Sequence[str], unlisted: Mapping[str, str]) -> None:
        self._disk, self._files, self._splits = disk, files, by_folder(files)
        self.splits, self._unlisted = list(self._splits), {**unlisted, **_beside(files, self._splits)}

    def rows(self, split: str | None) -> Encoded:
        """One split, or everything."""
        return folder_store(self._disk, self._files, self._splits, self._unlisted, split).source()


def folder_store(
    disk: Disk,
    files: Sequence[str],
    splits: Mapping[str, Sequence[str]],
    unlisted: Mapping[str, str],
    split: str | None = None,
) -> FileStore:
    """The pictures of one of ``splits``, or of all of them; all ``files`` where there are none.

    The first folder below the split is the label, if it is a class (see ``class_names``).
    """
    below = 1 if splits else 0
    chosen = sorted(chain(*splits.values())) if splits else files
    chosen = chosen if split is None else splits[split]
    classes = class_names(splits.values() or [files], below)
    numbers: dict[str | None, int] = {name: number for number, name in enumerate(classes)}
    labels = [numbers.get(class_folder(path, below), -1) for path in chosen] if classes else []
    classless = all(label < 0 for label in labels)
    return FileStore(disk, chosen, () if classless else labels, classes, unlisted)


class KindFiles(NamedTuple):
    """The files of one kind, and how many others there are: pictures, and files of other kinds."""

    files: list[str]
    pictures: int
    others: int


class Kind(NamedTuple):
    """Files that hold many pictures. ``open`` gives None where others beside them are meant; raises UserError."""

    suffixes: tuple[str, ...]
    open: Callable[[Disk, KindFiles], Divided[Encoded] | None]
    beside: tuple[str, ...] = ()  # suffixes of files that describe them


def find(data: str | os.PathLike[str]) -> Place[PictureSource]:
    """The place that a path, an address or a name on the Hub means; raises UserError."""
    if isinstance(data, str) and data.startswith(HUB):
        return _in_folder(Local(snapshot(data, (*SUFFIXES, *_ALL))), data)
    if isinstance(data, str) and (folders := FrameFolders.named(data)) is not None:
        return _frame_folders(folders)
    if isinstance(data, str) and "://" in data:
        parent, _, name = data.rpartition("/")
        remote = name and name.lower().partition("?")[0].endswith(_ALL)
        return _of_file(Remote(parent), name) if remote else _in_folder(Remote(data), data)
    root = _existing(Path(data))
    if (root / CANVASES).is_file():
        return Cache(root)
    return _in_folder(Local(root), str(root)) if root.is_dir() else _of_file(Local(root.parent), root.name)


def _existing(root: Path) -> Path:
    """The file or folder, which may be looked into; raises UserError."""
    try:
        if root.is_dir():
            os.scandir(root).close()
        elif not root.exists():
            raise UserError(f"{root}: no such file or folder; name pictures, tables or archives, or digits", BAD_DATA)
    except OSError as error:
        raise UserError(f"{root}: {error.strerror}; check its permissions", BAD_DATA) from None
    return root


def _frame_folders(folders: FrameFolders) -> Divided[Encoded]:
    root = Path(folders.where)
    if folders.where.lower().endswith(LISTS):
        return folders.listed(root.parent, PathList(root))
    disk = Remote(folders.where) if "://" in folders.where else Local(_existing(root))
    listing = disk.listed(SUFFIXES)
    if not listing.files:
        raise UserError(_nothing(folders.where, listing), BAD_DATA)
    return folders.below(disk, listing)


def _of_file(disk: Disk, name: str) -> Place[PictureSource]:
    """One file that holds many pictures, or names them; on a remote disk also ``shard-{000000..000099}.tar``."""
    lower = name.lower().partition("?")[0]
    files = [name] if isinstance(disk, Local) else _expanded(name)
    if isinstance(disk, Local) and lower.endswith(LISTS):
        listed = PathList(disk.root / name)
        if all(path.lower().endswith(VIDEOS) for path in listed.files):
            return video_files(disk, VideoList.of(listed))
        return Divided(listed.source(), listed.splits, said=True)
    for kind in KINDS:
        if lower.endswith(kind.suffixes) and (place := kind.open(disk, KindFiles(files, 0, 0))) is not None:
            return place
    raise UserError(
        f"{disk.name(name)}: a file that is no .parquet, .arrow, .tar, .zip, .txt, .csv, .tsv or video; "
        f"name the folder that holds the pictures; {FOR_TEXT}",
        BAD_DATA,
    )


def _expanded(name: str) -> list[str]:
    """The names that a range in braces stands for: WebDataset's word for shards on a server that lists nothing."""
    match = re.fullmatch(r"([^{}]*)\{(\d{1,9})\.\.(\d{1,9})\}([^{}]*)", name)
    if match is None:
        return [name]
    before, first, last, after = match.groups()
    return [f"{before}{number:0{len(first)}}{after}" for number in range(int(first), int(last) + 1)] or [name]


def _in_folder(disk: Disk, name: str) -> Place[PictureSource]:
    """The first kind of the table that the folder holds, else its pictures."""
    listing = disk.listed((*SUFFIXES, *_ALL))
    pictures = [path for path in listing.files if path.lower().endswith(SUFFIXES)]
    suffixes = Counter(map(suffix_of, listing.files)) + listing.others

    def unlisted(read: tuple[str, ...]) -> dict[str, str]:
        others = {suffix: count for suffix, count in suffixes.items() if suffix not in read}
        return listing.unreadable | unread(others)

    for kind in KINDS:
        files = [path for path in listing.files if path.lower().endswith(kind.suffixes)]
        others = len(listing.files) - len(files) - len(pictures)
        if files and (place := kind.open(disk, KindFiles(files, len(pictures), others))) is not None:
            return place.beside(unlisted((*kind.suffixes, *kind.beside)))
    if not pictures:
        raise UserError(_nothing(name, listing), BAD_DATA)
    masks = masks_among(disk, pictures)
    left = set(chain(*masks.values()))
    photos = [path for path in pictures if path not in left] if left else pictures
    return Folder(disk, photos, unlisted(SUFFIXES) | named_masks(masks))


def _parquet(disk: Disk, kind: KindFiles) -> Divided[Encoded] | None:
    groups = RowGroups()
    files = _each(disk, kind.files, lambda path: ParquetFile(disk, path, groups))
    if (place := _tables(disk, files, kind)) is not None:
        advise(files.values())
    return place


def _arrow(disk: Disk, kind: KindFiles) -> Divided[Encoded] | None:
    if not isinstance(disk, Local):
        raise UserError(f"{disk.name(kind.files[0])}: Arrow files are mapped into memory; copy them here", BAD_DATA)
    files = saved(disk.root, kind.files)
    return _tables(disk, {path: ArrowFile(disk.root / path) for path in files}, kind) if files else None


def _tables(disk: Disk, files: Mapping[str, TableFile], kind: KindFiles) -> Divided[Encoded] | None:
    """Tables with pictures go before picture files, a few of which a dataset's repository often holds too."""
    names = [path for path, file in files.items() if columns_of(file.schema) is not None]
    if not names and kind.pictures + kind.others:
        return None
    splits = by_split(names or list(files), table_split)
    names = sorted(chain(*splits.values())) or names or list(files)
    store = Tables({path: files[path] for path in names})
    if not store.paths:
        raise UserError(f"{files[names[0]].where}: a table without a row; fetch it again", BAD_DATA)
    store.unlisted |= _beside(list(files), splits)
    rows = {name: store.rows_of(paths) for name, paths in splits.items()} or store.split_rows()
    return Divided(Encoded(store, partial(stamps_of_files, disk.file, names, LONG_PIECE)), rows, said=True)


def _tars(disk: Disk, kind: KindFiles) -> Divided[Encoded] | None:
    """Shards go before pictures where they are as many: a backup beside photos is no data, nor is a logo."""
    return _archives(TarShard, disk, kind.files) if len(kind.files) >= kind.pictures else None


def _zips(disk: Disk, kind: KindFiles) -> Divided[Encoded] | None:
    """Zip archives count where there is nothing else."""
    return None if kind.pictures + kind.others else _archives(Zip, disk, kind.files)


def _archives(kind: type[TarShard] | type[Zip], disk: Disk, files: Sequence[str]) -> Divided[Encoded]:
    splits = by_split(files, table_split)
    divided = sorted(chain(*splits.values()))
    store = Archives(list(_each(disk, divided or files, lambda path: kind(disk, path)).values()))
    store.unlisted |= _beside(files, splits)
    if not store.paths:
        where, reason = next(iter(store.unlisted.items()), (files[0], "no member ends in .jpg, .png, .webp, ..."))
        raise UserError(f"{disk.name(files[0])}: no picture in it ({where}: {reason})", BAD_DATA)
    return Divided(Encoded(store, partial(stamps_of_files, disk.file, divided or files, LONG_PIECE)), store.splits)


def _videos(disk: Disk, kind: KindFiles) -> Divided[Encoded] | None:
    """Videos go before pictures where they are as many: a poster beside each is no data."""
    return video_files(disk, VideoList.in_folders(kind.files)) if len(kind.files) >= kind.pictures else None


def _beside(files: Sequence[str], splits: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """What is said of files that belong to none of the splits, where there are any."""
    chosen = set(chain(*splits.values()))
    return beside_splits([path for path in files if path not in chosen], splits) if splits else {}


def _compressed(disk: Disk, kind: KindFiles) -> Divided[Encoded] | None:
    if kind.pictures + kind.others:
        return None
    where = disk.name(kind.files[0])
    raise UserError(f"{where}: a compressed tar cannot be read at random; decompress it, or extract it", BAD_DATA)


def _each(disk: Disk, files: Sequence[str], open_one: Callable[[str], T]) -> dict[str, T]:
    with ThreadPoolExecutor(disk.at_once) as pool:
        return dict(zip(files, pool.map(open_one, files)))


KINDS = (
    Kind((".parquet",), _parquet),
    Kind((".arrow",), _arrow, (".json",)),
    Kind((".tar",), _tars),
    Kind(VIDEOS, _videos),
    Kind((".zip",), _zips),
    Kind((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"), _compressed),
)
_ALL = tuple(suffix for kind in KINDS for suffix in kind.suffixes)


def _nothing(name: str, listing: Listing) -> str:
    if listing.unreadable:
        folder, reason = next(iter(listing.unreadable.items()))
        count = len(listing.unreadable)
        return f"{name}: no picture, and {count} entries cannot be read, first {folder} ({reason}); check permissions"
    if not listing.others:
        return f"{name}: the folder is empty; name one that holds pictures (.jpg, .png, .webp, ...), tables or archives"
    return (
        f"{name}: no picture among its {listing.others.total()} files; "
        "pictures end in .jpg, .png, .webp, ..., videos in .mp4, .mkv, ..., tables in .parquet, archives in .tar or "
        f".zip; {FOR_TEXT}"
    )


def snapshot(data: str, suffixes: Sequence[str]) -> Path:
    """The folder of ``hub:owner/name[/folder][@revision]``: fetched if need be, and only files of these suffixes.

    Files are data, no code in a repository is run. HF_HUB_OFFLINE=1 reads the cache alone. Raises UserError.
    """
    match = _NAME.fullmatch(data.removeprefix(HUB))
    if match is None or ".." in data:
        raise UserError(
            f"{data}: no name of a dataset; write hub:owner/name, hub:owner/name/folder or ...@revision", USAGE
        )
    folder, hub = match["folder"].strip("/"), of_timm("huggingface_hub")
    patterns = [f"{folder}/*{suffix}" if folder else f"*{suffix}" for s in suffixes for suffix in (s, s.upper())]
    try:
        fetched = hub.snapshot_download(
            match["name"], repo_type="dataset", revision=match["revision"], allow_patterns=patterns
        )
    except Exception as error:  # of HTTP, of the Hub and of the cache: a dozen classes that change with its versions
        raise UserError(f"{data} cannot be fetched ({one_line(error)})", IO) from None
    root = Path(fetched) / folder
    if not root.is_dir():
        raise UserError(f"{data}: there is no picture, table or archive in it; see its files on the Hub", BAD_DATA)
    return root

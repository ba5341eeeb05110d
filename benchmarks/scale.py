"""How time and memory grow with the data: from a thousand images to a hundred thousand.

    python benchmarks/scale.py --json FILE [--before PATH] [--folder DIR] [--images 100000] [--only cold warm ...]

PATH is a checkout of an earlier version, which each row is run with besides. Images are random, smooth RGB JPEG of
256x256, written once into DIR (default: a folder of the temporary ones). Each row runs in a process of its own.

- cold, warm: from nothing, or from what was decoded before, to the first batch of images, at an eighth, a quarter, half
  and all of the images; beside it the time of decoding them once. Memory is the most that the process held without
  mapped files.
- processes: two processes of torchrun open the data at once; each image is to be decoded by one of them.
- tables: the position-wise tables of --images code maps of 64x64.
- copies: 5,000 images looked for among --images.
- nearest: 512 images' nearest among --images of 128x128.
- samples: 20,000 samples of a small model, killed twice; memory, and whether they are those of one uninterrupted run.
- volumes: 500 volumes, of which evaluate.py is to read those that are scored.
- loading: batches of 256x256 by two loading processes, decoding on the fly, against mapped pixels.
"""

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 256
SHARES = (8, 4, 2, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, type=Path, help="file for the figures")
    parser.add_argument("--before", type=Path, help="checkout of an earlier version")
    parser.add_argument("--folder", type=Path, help="where images, caches and runs are written")
    parser.add_argument("--images", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument("--only", nargs="*", default=[], choices=list(ROWS), help="rows; default: all")
    parser.add_argument("--row", choices=list(ROWS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        print("RESULT " + json.dumps(ROWS[arguments.row](arguments.folder, arguments.images)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = (arguments.folder or Path(name)).resolve()
        found = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
        for row in arguments.only or ROWS:
            sides = {"now": Path(__file__).resolve().parent.parent}
            if arguments.before and row not in ALONE:
                sides["before"] = arguments.before.resolve()
            for side, tree in sides.items():
                figures = in_a_process(tree, row, folder, arguments.images)
                found.setdefault(row, {})[side] = figures
                print(f"{row:<10} {side:<7} {figures}", flush=True)
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    print(f"wrote {arguments.json}")
    return 0


def in_a_process(tree: Path, row: str, folder: Path, images: int) -> Any:
    """Run a row with the package of a tree; what fails is the figure."""
    cache = folder / f"cache-{hashlib.sha256(str(tree).encode()).hexdigest()[:8]}"
    command = [sys.executable, __file__, "--json", "-", "--row", row, "--folder", str(folder), "--images", str(images)]
    environment = {**os.environ, "PYTHONPATH": str(tree), "VQVAE2_CACHE": str(cache), "TREE": str(tree)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]}
    return json.loads(lines[-1].removeprefix("RESULT "))


class Memory:
    """The most memory that this process holds of its own, without files that are mapped into it, from now on."""

    def __init__(self) -> None:
        self.begun = self.peak = self._now()
        threading.Thread(target=self._watch, daemon=True).start()

    def _now(self) -> int:
        status = Path("/proc/self/status").read_text()
        return sum(int(match[1]) for match in re.finditer(r"Rss(?:Anon|Shmem):\s+(\d+)", status)) * 1024

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, self._now())
            time.sleep(0.02)

    @property
    def mib(self) -> float:
        """What it grew by, at most."""
        return round((max(self.peak, self._now()) - self.begun) / 2**20, 1)


def one_jpeg(job: tuple[str, int]) -> None:
    path, seed = job
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
    Image.fromarray(np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))).save(path, quality=85)


def jpegs(folder: Path, count: int) -> Path:
    """Write what is not there yet; a person has one image."""
    place = folder / f"jpeg-{count}"
    place.mkdir(parents=True, exist_ok=True)
    jobs = [(str(place / f"{i:07d}.jpg"), i) for i in range(count) if not (place / f"{i:07d}.jpg").exists()]
    with ProcessPoolExecutor() as pool:
        list(pool.map(one_jpeg, jobs, chunksize=256))
    return place


def _open(place: Path, like: dict[str, Any] | None = None) -> tuple[float, Any]:
    from vqvae2.data import DataConfig, open_data

    started = time.perf_counter()
    data = open_data(DataConfig(data=str(place)), like=like)
    data.splits["train"].__getitems__(list(range(16)))
    return time.perf_counter() - started, data


def _part(folder: Path, images: int, share: int) -> Path:
    """A folder of links to a part of the images."""
    if share == 1:
        return jpegs(folder, images)
    place = folder / f"part-{images // share}"
    place.mkdir(parents=True, exist_ok=True)
    for path in sorted(jpegs(folder, images).iterdir())[: images // share]:
        if not (place / path.name).exists():
            os.link(path, place / path.name)
    return place


def cold(folder: Path, images: int) -> dict[str, Any]:
    """Time of the first opening by number of images, with a fit, and the time of decoding them once."""
    import shutil

    from vqvae2.data import decoding

    seconds = {}
    for share in SHARES:
        place = _part(folder, images, share)
        shutil.rmtree(os.environ["VQVAE2_CACHE"], ignore_errors=True)
        memory = Memory()
        seconds[images // share], _ = _open(place)
    paths = sorted(jpegs(folder, images).iterdir())
    started = time.perf_counter()
    with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:
        for _ in pool.map(lambda path: decoding.decode(path) and None, paths):
            pass
    decoded = time.perf_counter() - started
    n, s = np.array(list(seconds)), np.array(list(seconds.values()))
    slope, offset = np.polyfit(n, s, 1)
    return {
        "seconds": seconds,
        "fit": f"{offset:.2f} s + {1e6 * slope:.0f} us an image",
        "worst_misfit": float(np.abs((slope * n + offset) / s - 1).max()),
        "decode_once_s": decoded,
        "ratio": seconds[images] / decoded,
        "memory_mib": memory.mib,
    }


def warm(folder: Path, images: int) -> dict[str, Any]:
    """Time of a later opening, such as that of the second stage, which knows what the first has found."""
    place = jpegs(folder, images)
    _, data = _open(place)
    memory = Memory()
    seconds, _ = _open(place, like=json.loads(json.dumps(data.to_config())))
    return {"seconds": seconds, "memory_mib": memory.mib}


def processes(folder: Path, images: int) -> dict[str, Any]:
    """Two processes at once: images decoded in all, and bytes of the cache."""
    import shutil

    place, cache = _part(folder, images, 8), Path(os.environ["VQVAE2_CACHE"])
    shutil.rmtree(cache, ignore_errors=True)
    code = (
        "import multiprocessing, vqvae2.data.decoding as d\n"
        "inner, count = d._pixels, multiprocessing.Value('q')\n"
        "def counted(file):\n    with count:\n        count.value += 1\n    return inner(file)\n"
        "d._pixels = counted\n"
        "from vqvae2.data import DataConfig, open_data\n"
        f"open_data(DataConfig(data={str(place)!r}))\n"
        "print('DECODED', count.value)\n"
    )
    script = folder / "opens.py"
    script.write_text(code)
    started = time.perf_counter()
    both = [subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    decoded = [int(p.communicate()[0].split()[-1]) for p in both]
    size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) if cache.exists() else 0
    return {
        "images": images // 8,
        "decoded": decoded,
        "seconds": time.perf_counter() - started,
        "cache_bytes": size,
        "pixel_bytes": images // 8 * 3 * SIDE * SIDE,
    }


def tables(folder: Path, images: int) -> dict[str, Any]:
    """The position-wise tables of one level."""
    from vqvae2.metrics import positionwise_log_table

    rng = np.random.default_rng(0)
    codes = rng.integers(0, 512, (images, 64, 64), np.uint16)
    memory, started = Memory(), time.perf_counter()
    table = positionwise_log_table(codes, 512)
    return {"seconds": time.perf_counter() - started, "memory_mib": memory.mib, "sum": float(table.sum())}


def copies(folder: Path, images: int) -> dict[str, Any]:
    """Near copies of 5,000 images, of which 50 are planted."""
    from vqvae2.data import duplicates

    rng = np.random.default_rng(0)
    others = np.stack([_thumbnail(rng) for _ in range(images)])
    some = np.stack([_thumbnail(rng) for _ in range(5000)])
    some[:50] = others[:50] + rng.normal(0, 0.001, (50, 32, 32)).astype(np.float32)
    some[:50] -= some[:50].mean((1, 2), keepdims=True)
    some[:50] /= np.linalg.norm(some[:50], axis=(1, 2), keepdims=True)
    if hasattr(duplicates, "near_candidates"):
        a, b = duplicates.pooled(some), duplicates.pooled(others)
        started = time.perf_counter()
        pairs = []
        for row, candidates in duplicates.near_candidates(a, b):
            found = duplicates.nearly_equal(some[row][None], others[candidates])
            pairs += [(row, int(candidates[j])) for _, j in found]
    else:
        started = time.perf_counter()
        pairs = duplicates.nearly_equal(some, others)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "pairs": len(pairs), "digest": hashlib.sha256(repr(sorted(pairs)).encode()).hexdigest()}


def _thumbnail(rng: np.random.Generator) -> Any:
    small = rng.normal(size=(8, 8)).astype(np.float32)
    image = np.asarray(Image.fromarray(small).resize((32, 32), Image.Resampling.BILINEAR)).copy()
    image -= image.mean()
    return image / np.linalg.norm(image)


def nearest(folder: Path, images: int) -> dict[str, Any]:
    """The nearest of many images, as the report looks for them."""
    import torch

    from vqvae2.data import ImageSet
    from vqvae2.report.samples import nearest_training

    path = folder / f"nearest-{images}.bin"
    shape = (images, 1, 128, 128)
    rng = np.random.default_rng(0)
    if not path.exists() or path.stat().st_size != images * 128 * 128:
        with open(path, "wb") as file:
            for _ in range(images):
                small = Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8))
                file.write(np.asarray(small.resize((128, 128), Image.Resampling.BICUBIC)).tobytes())
    stored: Any = np.memmap(path, np.uint8, "r", shape=shape)
    keys = [str(i) for i in range(images)]
    train = ImageSet(stored, keys, keys, np.zeros((images, 0), np.int64), (0.0, 255.0))
    chosen = np.random.default_rng(1).choice(images, 512, replace=False)
    queries = torch.from_numpy(stored[np.sort(chosen)].astype(np.float32) / 127.5 - 1)
    queries = 0.7 * queries + 0.3 * queries.roll(1, 0)
    memory, started = Memory(), time.perf_counter()
    index, distance = nearest_training(queries, train)
    seconds = time.perf_counter() - started
    digest = hashlib.sha256(np.asarray(index).tobytes()).hexdigest()
    return {"seconds": seconds, "memory_mib": memory.mib, "mean": float(distance.mean()), "digest": digest}


def samples(folder: Path, images: int) -> dict[str, Any]:
    """A large set, killed twice."""
    run = folder / "samples-run"
    _tiny_run(run)
    count = max(64, images // 5)
    whole = _sampled(run, folder / "whole", count, kills=0)
    killed = _sampled(run, folder / "killed", count, kills=2)
    few = _sampled(run, folder / "few", count // 10, kills=0)
    digest = [_digest(folder / name) for name in ("whole", "killed")]
    return {
        "count": count,
        "seconds": whole["seconds"],
        "memory_mib": whole["memory_mib"],
        "memory_of_a_tenth_mib": few["memory_mib"],
        "killed": killed["killed"],
        "same_bytes": digest[0] == digest[1],
    }


def _tiny_run(run: Path) -> None:
    tree = Path(os.environ["TREE"])
    if (run / "prior-bottom" / "model.safetensors").exists():
        return
    small = ["--max-steps", "40", "--evaluations", "1", "--device", "cpu"]
    _call(
        tree / "train_vqvae.py", "--run", run, "--data", "phantom", "--phantom-images", "200", "--size", "32x32",
        "--hidden-channels", "16", "--residual-channels", "8", "--num-embeddings", "32", "32", *small,
    )  # fmt: skip
    _call(tree / "extract_codes.py", "--run", run, "--allow-collapse")
    for level in ("top", "bottom"):
        _call(
            tree / "train_prior.py", "--run", run, "--level", level, "--channels", "16", "--residual-channels", "16",
            "--num-layers", "2", *small,
        )  # fmt: skip


def _call(script: Path, *arguments: object) -> None:
    done = subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script.name}: {done.stderr[-500:]}")


def _sampled(run: Path, out: Path, count: int, kills: int) -> dict[str, Any]:
    """Sample, killed so many times on the way; memory is that of the process without mapped files."""
    import shutil

    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, str(Path(os.environ["TREE"]) / "sample.py"), "--run", run, "--out", out]
    command += ["--num", count, "--chunk-size", 256]
    started, peak, killed = time.perf_counter(), 0, 0
    while True:
        process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while process.poll() is None:
            peak = max(peak, _anonymous(process.pid))
            made = len(list(out.glob(".unfinished-*/*.safetensors"))) * 256
            if killed < kills and made > count * (killed + 1) / 3:
                process.send_signal(signal.SIGKILL)
                killed += 1
                break
            time.sleep(0.05)
        if process.wait() == 0:
            break
        if process.returncode != -signal.SIGKILL:
            raise SystemExit(f"sample.py: {process.stderr.read()[-500:] if process.stderr else ''}")
    return {"seconds": time.perf_counter() - started, "memory_mib": round(peak / 2**20), "killed": killed}


def _anonymous(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(match[1]) for match in re.finditer(r"Rss(?:Anon|Shmem):\s+(\d+)", status)) * 1024


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "samples.json":
            digest.update(path.name.encode() + path.read_bytes())
    digest.update(json.dumps(json.loads((folder / "samples.json").read_text())["nll_nats_per_code"]).encode())
    return digest.hexdigest()


def volumes(folder: Path, images: int) -> dict[str, Any]:
    """Volumes read by an opening of val alone."""
    import nibabel

    place = folder / "volumes"
    place.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(500):
        path = place / f"sub-{i:04d}_T1w.nii"
        if not path.exists():
            nibabel.save(nibabel.Nifti1Image(rng.normal(100, 20, (16, 16, 16)).astype(np.float32), np.eye(4)), path)
    from vqvae2.data import DataConfig, open_data
    from vqvae2.data import volumes as module

    inner, read = module.cut, []

    def counted(source: Any, config: Any) -> Any:
        read.append(source)
        return inner(source, config)

    module.cut = counted
    os.environ["VQVAE2_CACHE"] = str(folder / f"volumes-cache-{os.getpid()}")
    started = time.perf_counter()
    data = open_data(DataConfig(data=str(place)), ["val"])
    return {
        "read": len(read),
        "of_val": len(set(data.splits["val"].subjects)),
        "seconds": time.perf_counter() - started,
    }


def loading(folder: Path, images: int) -> dict[str, Any]:
    """Training steps a second with mapped pixels, and with images decoded by two processes meanwhile."""
    import torch

    from vqvae2.batches import load_batches
    from vqvae2.data import pixel_writer
    from vqvae2.presets import PRESETS
    from vqvae2.vqvae import VQVAE

    place = _part(folder, images, 8)
    rates = {}
    for name in ("mapped", "decoded"):
        if name == "decoded":
            pixel_writer.DISK_SHARE = 0.0
            os.environ["VQVAE2_CACHE"] = str(folder / f"decoded-cache-{os.getpid()}")
        _, data = _open(place)
        assert type(data.splits["train"].images).__name__.lower() == name
        torch.manual_seed(0)
        model = VQVAE(PRESETS["imagenet256"].vqvae).train().to(memory_format=torch.channels_last)
        batches = load_batches(data.splits["train"], 16, 0, 0, torch.device("cpu"), 2 if name == "decoded" else 0)
        times = []
        for _ in range(14):
            with torch.autocast("cpu", torch.bfloat16):
                loss, _, _ = model.loss(next(batches)["image"])
            loss.backward()
            model.zero_grad()
            times.append(time.perf_counter())
        rates[name] = 16 * 10 / (times[-1] - times[-11])
        batches.close()
    started = time.perf_counter()
    for row in range(256):
        data.splits["train"].images[row]
    return {
        **{f"{name}_images_per_second": rate for name, rate in rates.items()},
        "ratio": rates["decoded"] / rates["mapped"],
        "decoding_images_per_second_of_a_core": 256 / (time.perf_counter() - started),
    }


ROWS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "cold": cold,
    "warm": warm,
    "processes": processes,
    "tables": tables,
    "copies": copies,
    "nearest": nearest,
    "samples": samples,
    "volumes": volumes,
    "loading": loading,
}
ALONE = ("loading",)  # what an earlier version cannot do


if __name__ == "__main__":
    sys.exit(main())

"""Many clients at once: start a server, send it drawn images, and report what was lost, how long it took, and memory.

    python tests/benchmarks/serve_load.py --films 500 --clients 20

Each image is one upload that is kept, as the page does it. An image that is refused because the server is busy (503) is
sent again after the time that the answer names, and counts from its first try.
"""

from __future__ import annotations

import argparse
import queue
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))

from serving import film_png, pixels_of, png_of

from covidcxr.serve.worker import to_png

LABELS = ("covid19", "pneumonia", "normal")


def main() -> None:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=500)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--side", type=int, default=1024, help="height and width of an image")
    parser.add_argument("--model", default="mini")
    options = parser.parse_args()
    drawn = [pixels_of(film_png(seed, LABELS[seed % 3], (options.side,) * 2)) for seed in range(12)]
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        words = [sys.executable, "-m", "covidcxr", "serve", "--store", folder, "--port", str(port)]
        started = time.perf_counter()
        server = subprocess.Popen([*words, "--model", options.model], stdout=subprocess.DEVNULL)
        try:
            client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300)
            wait_until_ready(client, server)
            print(f"ready after {time.perf_counter() - started:.2f} s, {cpu_seconds(server.pid):.2f} s of CPU")
            started = time.perf_counter()
            client.post("/api/films", files={"file": ("first.png", png_of(drawn[0]))}).raise_for_status()
            print(f"first answer after {time.perf_counter() - started:.2f} s")
            load(client, server.pid, drawn, options.films, options.clients)
            large_batch(client, drawn, options.films)
        finally:
            server.terminate()
            server.wait()


def load(client: httpx.Client, pid: int, drawn: list[np.ndarray], images: int, clients: int) -> None:
    """Send images from many clients at once."""
    waiting: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
    for number in range(images):  # packed before the clock starts: clients must not take the server's time
        pixels = drawn[number % len(drawn)].copy()
        pixels[0, :16] = [number >> bit & 1 for bit in range(16)]  # no two images are the same
        waiting.put((number, to_png(pixels)))
    seconds: list[float] = []
    faults: list[str] = []
    busy = [0]

    def work() -> None:
        with httpx.Client(base_url=client.base_url, timeout=300) as own:
            while True:
                try:
                    number, content = waiting.get_nowait()
                except queue.Empty:
                    return
                begun = time.perf_counter()
                while (answer := own.post("/api/films", files={"file": (f"{number}.png", content)})).status_code == 503:
                    busy[0] += 1
                    time.sleep(float(answer.headers["Retry-After"]))
                seconds.append(time.perf_counter() - begun)
                if answer.status_code != 201 or not answer.json()["probabilities"]:
                    faults.append(answer.text)

    watching, peak = threading.Event(), [0.0]

    def watch() -> None:
        while not watching.wait(0.1):
            peak[0] = max(peak[0], memory(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    before, begun, spent = memory(pid), time.perf_counter(), cpu_seconds(*processes(pid))
    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole, spent = time.perf_counter() - begun, cpu_seconds(*processes(pid)) - spent
    watching.set()
    watcher.join()
    kept = {image["name"] for image in client.get("/api/films").json()["films"]}
    lost = [number for number in range(images) if f"{number}.png" not in kept]
    p50, p95 = np.percentile(seconds, [50, 95])
    batches = re.search(r"^covidcxr_batch_films_count (\S+)", client.get("/metrics").text, re.MULTILINE)
    assert batches is not None
    print(f"{images} images, {clients} clients: {len(lost)} lost, {len(faults)} errors, {busy[0]} times busy")
    print(f"{images / whole:.1f} films/s, {spent / images:.3f} s of CPU an image")
    print(f"p50 {p50:.2f} s, p95 {p95:.2f} s, longest {max(seconds):.2f} s")
    print(f"{(images + 1) / float(batches[1]):.1f} a batch; memory {before:.0f} MB before, {peak[0]:.0f} MB at most")
    if lost or faults:
        sys.exit(f"lost {lost[:5]}, errors {faults[:3]}")


def large_batch(client: httpx.Client, drawn: list[np.ndarray], images: int) -> None:
    """Send images as one request."""
    contents = [png_of(pixels) for pixels in drawn]
    files = [("files", (f"{number}.png", contents[number % len(contents)])) for number in range(min(images, 200))]
    begun = time.perf_counter()
    with client.stream("POST", "/api/predict", files=files) as answer:
        lines = answer.iter_lines()
        next(lines)
        first = time.perf_counter() - begun
        count = 1 + sum('"error"' not in line for line in lines)
    whole = time.perf_counter() - begun
    print(f"one request of {len(files)}: {count} answered, the first after {first:.2f} s, {count / whole:.1f} films/s")


def wait_until_ready(client: httpx.Client, server: subprocess.Popen[bytes]) -> None:
    """Ask for health until it is good."""
    while server.poll() is None:
        try:
            if client.get("/api/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    sys.exit("the server ended")


def processes(pid: int) -> list[int]:
    """Return the server and its workers."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def memory(pid: int) -> float:
    """Return the memory of the server and its workers, in MB; what they share counts for each."""
    pages = [int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in processes(pid)]
    return sum(pages) * 4096 / 1e6


def cpu_seconds(*pids: int) -> float:
    """Return the CPU time that processes have taken: what other programs take of the machine does not change it."""
    told = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(parts[11]) + int(parts[12]) for parts in told) / 100


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


if __name__ == "__main__":
    main()

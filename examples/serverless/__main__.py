"""``python -m examples.serverless``: a SuperLink and four SuperNodes here, with TLS and authentication."""

import json
import tempfile
import time
from pathlib import Path

from examples.deployment import Deployment

APP = Path(__file__).parent


def main() -> None:
    """Deploy the app, run it, and print what the boards reported."""
    with tempfile.TemporaryDirectory() as folder, Deployment(nodes=4) as flower:
        results = Path(folder) / "results.json"
        print("A SuperLink and four SuperNodes are up; the app starts.", flush=True)
        began = time.monotonic()
        flower.deploy(APP, {"results": str(results)}, timeout=1800.0)
        print(describe(json.loads(results.read_text()), time.monotonic() - began))


def describe(metrics: dict[str, dict[str, dict[str, float]]], seconds: float) -> str:
    """Return what the boards reported as a text."""
    trained, evaluated = metrics["train_metrics_clientapp"], metrics["evaluate_metrics_clientapp"]
    lines = ["round  train loss  accuracy of the boards' models: mean (lowest, highest)"] if evaluated else []
    for number, record in evaluated.items():
        lines.append(
            f"{number:>5}  {trained[number]['train_loss']:10.4f}  {record['accuracy']:.3f} "
            f"({record['accuracy-min']:.3f}, {record['accuracy-max']:.3f})"
        )
    last = trained[max(trained, key=int)]
    lines.append(
        f"{len(trained)} rounds in {seconds:.0f} s, the start of Flower's processes included (measured). "
        f"The busiest board sent and received {last['busiest-node-bytes'] / 1e6:.2f} MB (measured)."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Execute the notebooks and write them with their outputs: python notebooks/build.py [NAME ...]

Each notebook is kept twice: as text, NAME.py, which is edited, and as NAME.ipynb, which this script writes from it. The
outputs in git hold no paths of this machine, no times and no random identifiers, so a change in them is a change in a
result. Needs: pip install -e ".[notebooks]"
"""

import argparse
import base64
import io
import os
import re
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

FOLDER = Path(__file__).resolve().parent
SECONDS = 600
"""The longest time that a cell may take."""


def names() -> list[str]:
    """Return the names of all notebooks, in order."""
    return sorted(path.stem for path in FOLDER.glob("[0-9]*.py"))


def read(name: str) -> NotebookNode:
    """Return a notebook from its text, without outputs."""
    notebook = jupytext.read(FOLDER / f"{name}.py")
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = NotebookNode({"kernelspec": kernel, "language_info": {"name": "python"}})
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", NotebookNode()
    return notebook


def executed(name: str) -> NotebookNode:
    """Return a notebook with its outputs, executed in a fresh kernel from the folder of the notebooks.

    Raises CellExecutionError if a cell fails.
    """
    notebook = read(name)
    # A kernel that draws and prints as on any other machine: as many columns, and no colours.
    environment = os.environ | {"COLUMNS": "110", "NO_COLOR": "1", "PYTHONHASHSEED": "0"}
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        resources={"metadata": {"path": str(FOLDER)}},
        coalesce_streams=True,  # how often the kernel sends what a cell prints depends on its speed
    )
    client.execute(env=environment)
    for cell in notebook.cells:
        cell.metadata = NotebookNode()  # the client notes the time of each cell there
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data.pop("text/plain", None)  # it names the figure's size, or an object's address
                output.data["image/png"] = small(output.data["image/png"])
            if "metadata" in output:
                output.metadata = NotebookNode()
    return notebook


def small(png: str) -> str:
    """Return a picture in base64 with at most 256 colours and without metadata, such as the version of matplotlib."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    # Of Pillow's methods this one changes the colours of figures least.
    picture = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    file = io.BytesIO()
    picture.save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def faults(notebook: NotebookNode) -> list[str]:
    """Return what an output must not hold: warnings, widgets, and paths and times of this machine."""
    found = []
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            text = output.get("text", "") + "".join(output.get("data", {}).get("text/plain", ""))
            if output.get("name") == "stderr":
                found.append(f"cell {number} writes to stderr: {text[:200]}")
            if any("widget" in kind for kind in output.get("data", {})):
                found.append(f"cell {number} has a widget")
            if re.search(r"(^|[\s'\"])/(tmp|home|root|work|Users|var)/|\d\d:\d\d:\d\d", text):
                found.append(f"cell {number} has a path or a time: {text[:200]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=names(), metavar="NAME", help="by default all")
    for name in parser.parse_args().names:
        notebook = executed(name)
        if found := faults(notebook):
            raise SystemExit("\n".join([name, *found]))
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")
        print(f"{name}.ipynb is written")


if __name__ == "__main__":
    main()

"""Draw figures/train.svg: what `minicst train` shows, from a real run of its defaults.

Run: python figures/train_display.py
"""

import io
import re
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console, Group

from minicst.display import LiveDisplay, final_table
from minicst.job import prepare
from minicst.settings import TrainSettings
from minicst.training import train


class Snapshot(LiveDisplay):
    """Keeps the frame that is on the screen after 60 % of the steps."""

    frame = None

    def stepped(self, job, trace):
        """Draw the frame once, into a recording console."""
        super().stepped(job, trace)
        if self.frame is None and job.method.step >= 0.6 * job.plan.total_steps:
            recorder = Console(file=io.StringIO(), width=80, force_terminal=True)
            recorder.print(Group(self._progress, self._numbers(job, trace)))
            self.frame = recorder.file.getvalue()


def main():
    """Train with the default settings and draw."""
    from rich.text import Text

    display = Snapshot(Console(file=io.StringIO(), width=80, force_terminal=True))
    _, summary = train(prepare(TrainSettings()), watcher=display)
    console = Console(record=True, width=80, file=io.StringIO(), force_terminal=True)
    console.print("$ .venv/bin/minicst train\n")
    console.print(Text.from_ansi(display.frame.rstrip()))
    console.print("\n[dim]... and at the end:[/dim]\n")
    console.print(final_table(summary, {}))
    # The stock format loads a font from the network; any monospaced font will do.
    style = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.S)
    path = Path(__file__).with_name("train.svg")
    path.write_text(console.export_svg(title="minicst train", code_format=style))
    print(path)


if __name__ == "__main__":
    main()

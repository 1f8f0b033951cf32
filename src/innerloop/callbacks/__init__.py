"""What accompanies a training: the progress that people watch, the session that it runs in."""

from innerloop.callbacks.progress import Progress as Progress

"""What came of preparing: how much was kept, how much dropped and why, and what it took."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from xdyna_train.prepare_video import VideoResult
from xdyna_train.shards import ClipRecord

# The data set of the paper (Section 4.1), to which what was measured here is scaled.
PAPER_VIDEOS = 107_546
PAPER_HOURS = 900
STALE = "are of videos that are gone, or have changed since; they stay: without them, prepare into another folder"


@dataclass(frozen=True)
class PrepareReport:
    """videos: all of the source; refused: those of which nothing could be used for a reason that holds for the whole
    video. frames, source_hours: of what could be read. humans, scenes: clips kept; kept_hours: of them together.
    dropped: pieces and videos left out, by reason. core_hours: processor time, all threads together. stale: of the
    clips, those of videos that are gone from the source, or newer than their clips.
    """

    videos: int
    refused: int
    frames: int
    source_hours: float
    humans: int
    scenes: int
    kept_hours: float
    dropped: dict[str, int]
    core_hours: float
    stale: int = 0

    @classmethod
    def of(cls, results: Sequence[VideoResult], records: Iterable[ClipRecord], stale: int = 0) -> Self:
        """The sum of all videos, whichever run did them."""
        dropped = [one for result in results for one in result.dropped]
        records = list(records)
        return cls(
            videos=len(results),
            refused=sum(one.first is None for one in dropped),
            frames=sum(result.num_frames for result in results),
            source_hours=sum(result.seconds for result in results) / 3600,
            humans=sum(record.kind == "human" for record in records),
            scenes=sum(record.kind == "scene" for record in records),
            kept_hours=sum(record.num_frames / record.fps for record in records) / 3600,
            dropped=dict(Counter(one.reason for one in dropped).most_common()),
            core_hours=sum(result.cpu_seconds for result in results) / 3600,
            stale=stale,
        )

    @property
    def videos_per_core_hour(self) -> float:
        return self.videos / max(self.core_hours, 1e-9)

    @property
    def paper_core_hours(self) -> float:
        """An estimate: what 900 hours would take at the rate that was measured, if their videos were like these: as
        many frames a second, as many of them dropped."""
        return PAPER_HOURS * self.core_hours / max(self.source_hours, 1e-9)

    @property
    def frame_rate(self) -> float:
        """Frames per second of the videos, the mean."""
        return self.frames / max(3600 * self.source_hours, 1e-9)

    def lines(self) -> list[str]:
        """The report as it is read."""
        dropped = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items()) or "nothing"
        return [
            f"{self.videos} videos, {60 * self.source_hours:.1f} minutes of them readable",
            f"kept {self.humans} human and {self.scenes} scene clips, {60 * self.kept_hours:.1f} minutes",
            f"dropped {dropped}",
            *([f"{self.stale} of the clips {STALE}"] if self.stale else []),
            f"{self.core_hours:.3f} core hours: {self.videos_per_core_hour:.0f} videos an hour and core, "
            f"{3.6e6 * self.core_hours / max(self.frames, 1):.0f} ms a frame",
            f"estimate from that for {PAPER_VIDEOS:,} videos of {PAPER_HOURS} hours, at {self.frame_rate:.1f} frames a "
            f"second as here: {self.paper_core_hours:,.0f} core hours",
        ]

"""The settings of the server: where it listens, and what it accepts."""

from __future__ import annotations

from dataclasses import dataclass

from efficientdet.errors import SettingError
from efficientdet.settings import Settings, setting

# Pillow's own limit, against decompression bombs.
MOST_PIXELS = 89_478_485


@dataclass(frozen=True)
class ServeSettings(Settings):
    """Where the server listens, and what it accepts."""

    host: str = setting("127.0.0.1", "Address to listen on; 0.0.0.0 for all networks of this machine.")
    port: int = setting(8000, "Port to listen on; 0 takes a free one.", minimum=0, maximum=65535)
    batch_size: int = setting(8, "Images that go through the network together.", minimum=1)
    queue_size: int = setting(
        64,
        "Largest number of images waiting for a model, and of requests in progress; others are refused with 429.",
        minimum=1,
    )
    max_images: int = setting(16, "Largest number of images in a request.", minimum=1)
    max_megabytes: float = setting(20.0, "Largest body of a request, in megabytes (1,000,000 bytes).", above=0)
    max_pixels: int = setting(
        MOST_PIXELS, "Largest number of pixels of an image, width times height.", minimum=1, maximum=MOST_PIXELS
    )
    max_tiles: int = setting(400, "Largest number of tiles that an image is cut into.", minimum=1)
    time_limit: float = setting(
        30.0, "Seconds that a request may take to arrive (then 408), and to be answered (then 504).", above=0
    )

    def __post_init__(self) -> None:
        """Check types and ranges.

        Raises:
            SettingError: a value is out of range, or a request of `max_images` would never find room in the queue.
        """
        super().__post_init__()
        if self.max_images > self.queue_size:
            raise SettingError(
                f"max_images is {self.max_images}; it must be at most queue_size, which is {self.queue_size}"
            )

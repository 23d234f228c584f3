"""The ``policy_patch_*`` metrics of patch files: how long they take to load, and why they are refused."""

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from patches.errors import FORMAT_REASONS, SIGNATURE_REASONS

LOAD_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class FileMetrics:
    """Counts what becomes of files, and says when the folder was last looked at."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._load = Histogram(
            "policy_patch_load_seconds",
            "From reading a patch file to its being served.",
            buckets=LOAD_BOUNDS_S,
            registry=registry,
        )
        self._load_failures = Counter(
            "policy_patch_load_failures",
            "Refused patch files, failed scans of the folder, and prefixes that a worker did not drop.",
            ("reason",),
            registry=registry,
        )
        self._signature_failures = Counter(
            "policy_patch_signature_failures",
            "Patch files whose signature is missing, wrong, or by a signer that does not count.",
            ("reason",),
            registry=registry,
        )
        self._refused_files = Gauge(
            "policy_patch_refused_files",
            "Files in the patch folder that are refused now.",
            multiprocess_mode="max",
            registry=registry,
        )
        self._folder_readable = Gauge(
            "policy_patch_folder_readable",
            "1 where the last scan of the patch folder worked.",
            multiprocess_mode="max",
            registry=registry,
        )
        self._folder_scan = Gauge(
            "policy_patch_folder_scan_timestamp_seconds",
            "Unix time of the last scan of the patch folder that worked.",
            multiprocess_mode="max",
            registry=registry,
        )
        self.expect_reasons(FORMAT_REASONS)
        for reason in SIGNATURE_REASONS:
            self._signature_failures.labels(reason)

    def expect_reasons(self, reasons: Iterable[str]) -> None:
        """Show 0 for reasons that nothing was refused for yet."""
        for reason in reasons:
            self._load_failures.labels(reason)

    def load_succeeded(self, seconds: float) -> None:
        """Observe a load."""
        self._load.observe(seconds)

    def load_failed(self, reason: str) -> None:
        """Count a refused file or a failed scan."""
        self._load_failures.labels(reason).inc()
        if reason in SIGNATURE_REASONS:
            self._signature_failures.labels(reason).inc()

    def set_refused_files(self, num_files: int) -> None:
        """Set how many files are refused now."""
        self._refused_files.set(num_files)

    def folder_scanned(self, *, is_readable: bool) -> None:
        """Note a scan of the folder, and whether it worked."""
        self._folder_readable.set(is_readable)
        if is_readable:
            self._folder_scan.set(time.time())

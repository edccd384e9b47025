"""What a run leaves behind: `from shared import log; log.LoggerList.Builder(...)`."""

from shared.log.local_logger import check_same_run, read_metrics
from shared.log.logger_list import LoggerList
from shared.log.redaction import redact

__all__ = ['LoggerList', 'check_same_run', 'read_metrics', 'redact']

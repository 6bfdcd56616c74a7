"""The table of checks that this program makes by itself."""

from __future__ import annotations

from collections.abc import Mapping

from taskforgectl.doctor.files import check_file_system, check_folder, check_log, check_permissions
from taskforgectl.doctor.model import Check
from taskforgectl.doctor.process import check_daemon, check_ports, check_version
from taskforgectl.doctor.service import check_service, check_units

__all__ = ["LOCAL", "REMOTE"]

REMOTE: Mapping[str, Check] = {"client": check_version}
"""What can be checked of a daemon anywhere."""

LOCAL: Mapping[str, Check] = {
    "home": check_folder,
    "permissions": check_permissions,
    "file system": check_file_system,
    "daemon": check_daemon,
    "ports": check_ports,
    "client": check_version,
    "log": check_log,
    "units": check_units,
    "service": check_service,
}
"""What is checked where the home is on this machine, in the order in which it is shown."""

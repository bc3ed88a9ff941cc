"""What `ingest doctor` says about the certificate of the data port."""

from __future__ import annotations

import math
from pathlib import Path

from ingest.cli.doctor_database import FAIL, OK, WARN, Check
from ingest.config.settings import Settings
from ingest.http.certificate import Certificate
from ingest.model.errors import StartError
from ingest.system.clock import rfc3339_s, unix_us

DAYS_MIN = 14  # as the alert IngestCertificateEnds


def certificate_check(settings: Settings) -> Check:
    """Check that the files can be used, and for how long. Blocks for some ms."""
    name = "certificate"
    try:
        found = Certificate(Path(settings.tls_cert_file), Path(settings.tls_key_file))
    except StartError as error:
        return Check(name, FAIL, str(error))
    if math.isnan(found.ends_s):
        return Check(name, WARN, f"no client would accept {settings.tls_cert_file}; make a new one")
    left_days = (found.ends_s - unix_us() / 1e6) / 86_400
    until = rfc3339_s(round(found.ends_s * 1e6))
    if left_days < 0:
        return Check(name, FAIL, f"has ended at {until}: clients refuse it; put a new one there")
    said = f"valid until {until}, {left_days:.0f} days"
    if left_days < DAYS_MIN:
        return Check(name, WARN, f"{said}; put a new one there, a restart is not needed")
    return Check(name, OK, said)

"""`ingest up`: starts, watches and ends the processes of the roles on one machine."""

"""Clients of the service: post a CSV, send load and measure, prove that nothing was lost.

They know the service from outside only (HTTP, metrics, its table, its dead letters), so that what
they find out is what a device or an operator would: nothing of `ingest` is imported.

The path of a post (names are files of this package):

    fleet --> traffic --> schedule --> driver --> pool --> wire ==> the service
    (curves)  (bodies)    (when)       |  ^                |
                                       |  `---- retry <----'  429, 503, nobody there
                                       v
                                     tally, timeline, histogram --> report_* (text, JSON, HTML)

    run       cli_run, cli_run_*; load (one run), find_max (many), scrape (the service's own counts)
    verify    cli_verify, cli_verify_options; proof (readings by number) --> ledger (what was sent,
              what was answered); then quiet (wait) --> table, letters --> reconcile --> conclude
    csv       cli_csv, csv_file, client (an aiohttp client that never gives a post up)
    demo      demo, demo_service: `./run demo`
"""

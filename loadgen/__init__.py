"""Clients of the service: post a CSV, send load and measure, prove that nothing was lost.

They know the service from outside only (HTTP, metrics, its table, its dead letters), so that what
they find out is what a device or an operator would: nothing of `ingest` is imported.

A folder imports from folders below it; folders side by side do not know each other:

    cli                    main; run, verify, csv and their options
    demo      report       ./run demo                | text, JSON, HTML, the verdict of a proof
    measure   proof        a run of load, and counts | numbered readings, a ledger, a comparison
    driver                 sends when due, and again: connections, retries, metrics
    traffic   csv          what is sent, and when    | a CSV file, and a client for it
    words, live, answer    ground: numbers with nouns; progress of a command; JSON of an answer

The path of a post (folder/file):

    traffic/fleet --> traffic/traffic --> driver/driver --> driver/pool --> driver/connection ==>
    (curves)          (bodies)            |  ^   ^                            |      the service
                                          |  |   `-- traffic/schedule (when)  |
                                          |  `------ driver/retry <-----------'  429, 503, nobody
                                          v                                      there
        measure/tally, timeline, histogram (loadgen run)      --> report/json --> text, html
        proof/run --> ledger (loadgen verify); then balance (wait) --> table, dead_letters
                  --> reconcile --> conclude --> report/verdict
"""

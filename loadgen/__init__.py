"""Clients of the service: post a CSV, send load and measure, prove that nothing was lost.

They use the service only from outside (HTTP, metrics, its table, its dead letters). So they see
what a device or an operator would see. Nothing of `ingest` is imported.

A folder imports from folders below it. Folders in one row do not import each other:

    cli                    main; run, verify, csv and their options
    demo      report       ./run demo                | text, JSON, the verdict of a proof
    measure   proof        a run of load, and counts | numbered readings, a ledger, a comparison
    driver                 sends when due, and again: connections, retries
    traffic   csv          what is sent, and when    | a CSV file, and a client for it
    wire                   what the service says: JSON of answers, /metrics
    words, live            files on the ground: numbers with nouns; the progress of a command

The path of a post (folder/file):

    traffic/fleet --> traffic/traffic --> driver/driver --> driver/pool --> driver/connection ==>
    (curves)          (bodies)            |  ^   ^                            |      the service
                                          |  |   `-- traffic/schedule (when)  |
                                          |  `------ driver/retry <-----------'  429, 503, no
                                          v                                      connection
        measure/tally, timeline, histogram (loadgen run)      --> report/json --> text
        proof/run --> ledger (loadgen verify); then balance (wait) --> table, letter_sources
                  --> reconcile --> conclude --> report/verdict
"""

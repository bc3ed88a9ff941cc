// What the JavaScript programs share; see ../senders/common.py, which says the same in Python.
'use strict'

const { readFileSync } = require('node:fs')
const readline = require('node:readline')

const BATCH = 100
const PACE_MS = 20
const AGAIN_MS = 300

const tell = (what) => process.stdout.write(JSON.stringify(what) + '\n')
const said = (error) => tell({ said: `${error.name}: ${error.message} ${error.body || ''}`.slice(0, 2000) })
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

const order = JSON.parse(process.argv[2])
const points = JSON.parse(readFileSync(order.file, 'utf8')).map(
  ([tsUs, device, place, field, value]) => ({ tsUs, device, place, field, value })
)

// Yields the indexes of one batch after another, slowly; stops at the gates.
async function* batches() {
  const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]()
  const gates = [...order.gates]
  for (let first = 0; first < points.length; first += BATCH) {
    if (gates.length && first >= gates[0]) {
      tell({ gate: gates.shift() })
      await lines.next()
    }
    const last = Math.min(first + BATCH, points.length)
    yield Array.from({ length: last - first }, (_, at) => first + at)
    await sleep(PACE_MS)
  }
}

module.exports = { AGAIN_MS, batches, order, points, said, sleep, tell }

// `@questdb/nodejs-client` over HTTP: as it comes, or with the version of its protocol that is given.
//
// It tries a batch again for ten seconds; then it throws an error. If the service says that it wants
// another version, the program does what it says.
'use strict'

const { Sender } = require('@questdb/nodejs-client')
const { AGAIN_MS, batches, order, points, said, sleep, tell } = require('./common.js')

let version = process.argv[3]

async function write(batch) {
  const { host } = new URL(order.url)
  const chosen = version ? `protocol_version=${version};` : ''
  const sender = await Sender.fromConfig(
    `http::addr=${host};username=any;password=${order.token};auto_flush=off;${chosen}`
  )
  for (const { tsUs, device, place, field, value } of batch.map((at) => points[at])) {
    const row = sender.table(order.measurement).symbol('device', device).symbol('place', place)
    if (field === 'count') row.intColumn(field, value)
    else if (field === 'on') row.booleanColumn(field, value)
    else row.floatColumn(field, value)
    await sender.at(BigInt(tsUs), 'us')
  }
  await sender.flush()
  await sender.close()
}

async function main() {
  for await (const batch of batches()) {
    for (;;) {
      try {
        await write(batch)
        tell({ kept: batch })
        break
      } catch (error) {
        said(error)
        if (points.length === 1) return
        version = /protocol_version=(\d)/.exec(error.message)?.[1] ?? version
        await sleep(AGAIN_MS)
      }
    }
  }
}

main().then(() => process.exit(0))

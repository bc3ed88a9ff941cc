// `influx` (InfluxDB 1): writePoints, with the token as the password of Basic.
// It tries again twice; a batch that failed is sent again here.
'use strict'

const Influx = require('influx')
const { AGAIN_MS, batches, order, points, said, sleep, tell } = require('./common.js')

const url = new URL(order.url)
const client = new Influx.InfluxDB({
  host: url.hostname,
  port: Number(url.port),
  database: 'home',
  username: 'any',
  password: order.token,
  schema: [
    {
      measurement: order.measurement,
      tags: ['device', 'place'],
      fields: {
        value: Influx.FieldType.FLOAT,
        count: Influx.FieldType.INTEGER,
        on: Influx.FieldType.BOOLEAN,
      },
    },
  ],
})

const record = ({ tsUs, device, place, field, value }) => ({
  measurement: order.measurement,
  tags: { device, place },
  fields: { [field]: value },
  timestamp: String(tsUs),
})

async function main() {
  for await (const batch of batches()) {
    for (let kept = false; !kept; ) {
      try {
        await client.writePoints(batch.map((at) => record(points[at])), { precision: 'u' })
        kept = true
      } catch (error) {
        said(error)
        if (points.length === 1) return
        await sleep(AGAIN_MS)
      }
    }
    tell({ kept: batch })
  }
}

main().then(() => process.exit(0))

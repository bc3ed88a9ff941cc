// `@influxdata/influxdb-client` (InfluxDB 2): its batching and its tries. The token is sent as `Token`.
'use strict'

const { InfluxDB, Point } = require('@influxdata/influxdb-client')
const { batches, order, points, said, sleep, tell } = require('./common.js')

const open = new Set(points.keys())
const indexOf = new Map(points.map(({ tsUs }, at) => [String(tsUs), at]))
const indexes = (lines) => lines.map((line) => indexOf.get(line.slice(line.lastIndexOf(' ') + 1)))
let failed = []

const api = new InfluxDB({ url: order.url, token: order.token }).getWriteApi('org', 'home', 'us', {
  batchSize: 500,
  flushInterval: 1000,
  writeSuccess(lines) {
    const kept = indexes(lines)
    kept.forEach((at) => open.delete(at))
    tell({ kept })
  },
  writeFailed(error, lines, attempt) {
    said(error)
    if (attempt > this.writeOptions.maxRetries || !(error.statusCode === undefined || error.statusCode >= 429)) {
      failed.push(...indexes(lines))
      return Promise.resolve() // given up: nothing more is done by the client
    }
  },
})

function write(at) {
  const { tsUs, device, place, field, value } = points[at]
  const point = new Point(order.measurement).tag('device', device).tag('place', place)
  if (field === 'count') point.intField(field, value)
  else if (field === 'on') point.booleanField(field, value)
  else point.floatField(field, value)
  api.writePoint(point.timestamp(String(tsUs)))
}

async function main() {
  for await (const batch of batches()) batch.forEach(write)
  while (open.size && !(points.length === 1 && failed.length)) {
    failed.splice(0).forEach(write)
    await sleep(100)
  }
}

main().then(() => process.exit(0))

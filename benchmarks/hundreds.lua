-- wrk: posts of 100 readings, every timestamp new. Arguments after --: the first timestamp, in us.
local prefix = 0
local parts = {}
function init(args)
  prefix = math.floor(tonumber(args[1]) / 100)
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  for i = 0, 99 do
    parts[2 * i + 1] = string.format(
      '%s{"device_id":"device-%03d","metric":"temperature","value":%d.%02d,"ts":',
      i == 0 and "[" or string.format("%02d},", i - 1), (i * 7) % 200, 20 + i % 5, i)
    parts[2 * i + 2] = ""
  end
  parts[201] = "99}]"
end
function request()
  prefix = prefix + 1
  local text = string.format("%.0f", prefix)
  for i = 2, 200, 2 do parts[i] = text end
  return wrk.format(nil, "/v1/readings", nil, table.concat(parts))
end

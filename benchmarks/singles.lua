-- wrk: one reading a post, every timestamp new. Arguments after --: the first timestamp, in us.
local first = 0
function init(args)
  first = tonumber(args[1])
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
end
local n = 0
local refused = 0
function request()
  n = n + 1
  local body = string.format(
    '{"device_id":"device-%03d","metric":"temperature","ts":%.0f,"value":%d.%02d}',
    n % 200, first + n, 20 + n % 5, n % 100)
  return wrk.format(nil, "/v1/readings", nil, body)
end

-- wrk: one reading a post, of 100,000 devices in a random order, each post on a new connection.
-- Arguments after --: the first timestamp in us.
local first, n = 0, 0
local pattern = '{"device_id":"device-%05d","metric":"temperature","ts":%.0f,"value":%d.%02d}'
function init(args)
  first = tonumber(args[1])
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["Connection"] = "close"
end
function request()
  n = n + 1
  return wrk.format(nil, nil, nil,
    string.format(pattern, math.random(0, 99999), first + n, 20 + n % 5, n % 100))
end

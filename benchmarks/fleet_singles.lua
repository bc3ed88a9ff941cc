-- wrk: one reading a post, of 100,000 devices in a random order, each post on a new connection.
-- Arguments after --: the first timestamp in us; json or line.
local first, n = 0, 0
local pattern = '{"device_id":"device-%05d","metric":"temperature","ts":%.0f,"value":%d.%02d}'
local line = 'temperature,device_id=device-%05d value=%d.%02d %.0f'
local lines = false
function init(args)
  first = tonumber(args[1])
  lines = args[2] == "line"
  wrk.method = "POST"
  wrk.headers["Content-Type"] = lines and "text/plain" or "application/json"
  wrk.headers["Connection"] = "close"
end
function request()
  n = n + 1
  local device, whole, part = math.random(0, 99999), 20 + n % 5, n % 100
  if lines then
    return wrk.format(nil, nil, nil, string.format(line, device, whole, part, first + n))
  end
  return wrk.format(nil, nil, nil, string.format(pattern, device, first + n, whole, part))
end

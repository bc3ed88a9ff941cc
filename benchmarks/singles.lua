-- wrk: one reading a post, every timestamp new.
-- Arguments after --: the first timestamp in us; json or line.
local first, n = 0, 0
local pattern =
  '{"device_id":"device-%03d","metric":"temperature","ts":%.0f,"value":%d.%02d}'
local line = false
function init(args)
  first = tonumber(args[1])
  line = args[2] == "line"
  wrk.method = "POST"
  wrk.headers["Content-Type"] = line and "text/plain" or "application/json"
end
function request()
  n = n + 1
  local body
  if line then
    body = string.format(
      'temperature,device_id=device-%03d value=%d.%02d %.0f', n % 200, 20 + n % 5, n % 100, first + n)
  else
    body = string.format(pattern, n % 200, first + n, 20 + n % 5, n % 100)
  end
  return wrk.format(nil, nil, nil, body)
end

-- wrk: posts of 100 readings, every timestamp new.
-- Arguments after --: the first timestamp in us; json or line. Only the timestamps change: each is
-- `prefix` followed by the reading's number in the post.
local prefix = 0
local parts = {}
function init(args)
  prefix = math.floor(tonumber(args[1]) / 100)
  local line = args[2] == "line"
  wrk.method = "POST"
  wrk.headers["Content-Type"] = line and "text/plain" or "application/json"
  local json_item = '%s{"device_id":"device-%03d","metric":"temperature","value":%d.%02d,"ts":'
  local line_item = '%stemperature,device_id=device-%03d value=%d.%02d '
  local between = line and "\n" or "},"
  for i = 0, 99 do
    local before = i == 0 and (line and "" or "[") or string.format("%02d", i - 1) .. between
    parts[2 * i + 1] = string.format(
      line and line_item or json_item, before, (i * 7) % 200, 20 + i % 5, i)
    parts[2 * i + 2] = ""
  end
  parts[201] = line and "99" or "99}]"
end
function request()
  prefix = prefix + 1
  local text = string.format("%.0f", prefix)
  for i = 2, 200, 2 do parts[i] = text end
  return wrk.format(nil, nil, nil, table.concat(parts))
end

-- wrk: posts as Telegraf sends them: many lines of ten fields, gzip. Every timestamp is new.
-- Arguments after --: (not used); (not used); the file of telegraf.py with the bodies. Each is sent
-- once; after the last one the run ends.
local bodies = {}
local at = 0
function init(args)
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "text/plain"
  wrk.headers["Content-Encoding"] = "gzip"
  local file = assert(io.open(args[3], "rb"))
  local size = file:read(8)
  while size do
    bodies[#bodies + 1] = wrk.format(nil, nil, nil, file:read(tonumber(size)))
    size = file:read(8)
  end
  file:close()
end
function request()
  at = at + 1
  return bodies[at] or bodies[#bodies]
end
function response()
  if at >= #bodies then wrk.thread:stop() end
end

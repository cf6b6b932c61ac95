-- Redirects for wrk: asks for one of N codes, and checks the Location of every single answer.
-- Arguments: N, "uniform" or "zipf" (s = 1), the length of the padding of targets, and "exact" or "form".
-- exact: the target of the code that was asked for. That needs one connection a thread (-t equal to -c), so
-- that an answer belongs to the request before it. form: the target of any code. See shortener.py.
local links, spread, pad = 1, "uniform", ""
local alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
local threads = {}
local codes = 62 ^ 7
local asked = nil

function setup(thread)
  thread:set("seed", #threads + 1)
  table.insert(threads, thread)
end

function init(args)
  links, spread, pad = tonumber(args[1]), args[2], string.rep("x", tonumber(args[3]))
  math.randomseed(seed * 7919)
  exact = args[4] == "exact"
  wrong, strange = 0, 0
end

local function code_of(n)
  local rest, out = (n * 2654435761 + 12345) % codes, ""
  for _ = 1, 7 do
    local digit = rest % 62
    out = alphabet:sub(digit + 1, digit + 1) .. out
    rest = (rest - digit) / 62
  end
  return out
end

function request()
  local n
  if spread == "zipf" then
    n = (math.floor(links ^ math.random()) * 7919) % links
  else
    n = math.random(0, links - 1)
  end
  asked = code_of(n)
  return wrk.format("GET", "/" .. asked)
end

function response(status, headers, body)
  if status ~= 302 then
    strange = strange + 1
    return
  end
  local where = headers["location"] or headers["Location"] or ""
  local code = exact and asked or where:sub(21, 27)
  if where ~= "https://example.com/" .. code .. "/" .. pad then wrong = wrong + 1 end
end

function done(summary, latency, requests)
  local wrong, strange = 0, 0
  for _, thread in ipairs(threads) do
    wrong = wrong + (thread:get("wrong") or 0)
    strange = strange + (thread:get("strange") or 0)
  end
  local errors = summary.errors
  io.write(string.format(
    '\nRESULT {"requests": %d, "seconds": %.3f, "p50_ms": %.2f, "p99_ms": %.2f, "p999_ms": %.2f, "max_ms": %.1f, '
      .. '"wrong": %d, "not_302": %d, "socket_errors": %d, "timeouts": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    latency:percentile(99.9) / 1000, latency.max / 1000, wrong, strange,
    errors.connect + errors.read + errors.write, errors.timeout))
end

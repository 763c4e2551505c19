-- Has wrk post events, each with an id of its own: wrk … URL -- BODY-FILE APPLICATION DEVICES
-- With 0 devices each event is of a new one.

local threads = 0

function setup(thread)
    thread:set("thread", threads)
    threads = threads + 1
end

function init(arguments)
    local file = assert(io.open(arguments[1], "rb"))
    body = file:read("*a")
    file:close()
    application = arguments[2]
    devices = tonumber(arguments[3])
    run = os.time() .. "-" .. math.random(1000000000)
    -- Of many devices, others than those of the load before.
    sent = devices > 0 and os.time() * 10007 % devices or 0
    headers = {
        ["content-type"] = "application/cbor",
        ["ce-specversion"] = "1.0",
        ["ce-type"] = "io.drogue.event.v1",
        ["ce-subject"] = "dfu",
        ["ce-application"] = arguments[2],
        ["ce-applicationuid"] = "9f2f8ff7-7a0a-4a4e-9d2c-0d2a5b6f4c11",
        ["ce-deviceuid"] = "3a0e6f5e-5d8b-4a55-8a35-6b1a8f0c7d22",
        ["ce-sender"] = "device",
        ["ce-senderuid"] = "3a0e6f5e-5d8b-4a55-8a35-6b1a8f0c7d22",
        ["ce-instance"] = "drogue",
        ["ce-partitionkey"] = arguments[2] .. "/device",
    }
end

function request()
    sent = sent + 1
    headers["ce-id"] = run .. "-" .. thread .. "-" .. sent
    local device = tostring(devices > 0 and sent % devices or run .. "-" .. sent)
    headers["ce-device"] = "device-" .. device
    headers["ce-source"] = "drogue://" .. application .. "/device%2D" .. device:gsub("-", "%%2D")
    headers["ce-time"] = os.date("!%Y-%m-%dT%H:%M:%SZ")
    return wrk.format("POST", "/", headers, body)
end

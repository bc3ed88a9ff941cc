"""A body of each preset, as its sender sends it, shortened; and its readings.

Each has the body, what comes beside it, and (time in us, device, metric, value).
"""

from __future__ import annotations

from typing import Any

from tests.support.posts import NOW_US

AT = 1_777_636_800_000_000  # 2026-05-01T12:00:00Z
BODIES: dict[str, tuple[str, dict[str, Any], list[tuple[int, str, str, float]]]] = {
    "ttn": (
        """{"end_device_ids":{"device_id":"dev1","application_ids":{"application_id":"app1"},
        "dev_eui":"0004A30B001C0530"},"correlation_ids":["as:up:01"],
        "received_at":"2026-05-01T12:00:00.200000000Z","uplink_message":{"f_port":1,"f_cnt":7,
        "frm_payload":"AQ==","decoded_payload":{"temperature":21.5,"ok":true,"state":"dry",
        "gps":{"lat":52.5}},"rx_metadata":[{"rssi":-35}],
        "received_at":"2026-05-01T12:00:00.000001234Z"}}""",
        {},
        [
            (AT + 1, "app1/dev1", "temperature", 21.5),
            (AT + 1, "app1/dev1", "ok", 1.0),
            (AT + 1, "app1/dev1", "gps.lat", 52.5),
        ],
    ),
    "chirpstack": (
        """{"deduplicationId":"3ac7e3c4","time":"2026-05-01T12:00:00.123456+00:00","deviceInfo":
        {"tenantId":"52f1","deviceName":"n","devEui":"0101010101010101","tags":{"k":"v"}},
        "devAddr":"00189440","dr":1,"fPort":1,"data":"qg==","object":{"temperature":22.5,
        "rain":[1,2]},"rxInfo":[{"rssi":-48}]}""",
        {"query": {"event": "up"}},
        [(AT + 123456, "0101010101010101", "temperature", 22.5)],
    ),
    "thingsboard": (
        '[{"ts":1777636800000,"values":{"t":21.5,"n":"12"}},{"hum":40}]',
        {"token": {"device": "boiler"}},
        [(AT, "boiler", "t", 21.5), (AT, "boiler", "n", 12.0), (NOW_US, "boiler", "hum", 40.0)],
    ),
    "airrohr": (
        """{"esp8266id":"1234","software_version":"NRZ-2024-135","sensordatavalues":[
        {"value_type":"SDS_P1","value":"12.30"},{"value_type":"BME280_temperature","value":"-3.5"},
        {"value_type":"GPS_date","value":"05/01/2026"}]}""",
        {},
        [
            (NOW_US, "airrohr-1234", "SDS_P1", 12.3),
            (NOW_US, "airrohr-1234", "BME280_temperature", -3.5),
        ],
    ),
    "airgradient": (
        """{"wifi":-46,"serialno":"ecda3b1eaaaf","rco2":447,"pm02":7,"atmp":25.87,"boot":6,
        "bootCount":6,"ledMode":"pm","model":"I-9PSL","channels":{"1":{"pm02":7}}}""",
        {"path": {"device": "ecda3b1eaaaf"}},
        [
            (NOW_US, "ecda3b1eaaaf", "wifi", -46.0),
            (NOW_US, "ecda3b1eaaaf", "rco2", 447.0),
            (NOW_US, "ecda3b1eaaaf", "pm02", 7.0),
            (NOW_US, "ecda3b1eaaaf", "atmp", 25.87),
            (NOW_US, "ecda3b1eaaaf", "channels.1.pm02", 7.0),
        ],
    ),
    "ruuvi": (
        """{"data":{"coordinates":"","timestamp":1777636800,"nonce":1,"gw_mac":"AA:BB","tags":
        {"F4:1F:0C":{"rssi":-60,"timestamp":1777636799,"ble_phy":"1M","ble_chan":37,"dataFormat":5,
        "temperature":22.1},"E0:01":{"rssi":-70}}}}""",
        {},
        [
            (AT - 10**6, "F4:1F:0C", "rssi", -60.0),
            (AT - 10**6, "F4:1F:0C", "dataFormat", 5.0),
            (AT - 10**6, "F4:1F:0C", "temperature", 22.1),
            (AT, "E0:01", "rssi", -70.0),
        ],
    ),
    "ecowitt": (
        "PASSKEY=34271334ED1FADA6D8B988B14267E55D&stationtype=EasyWeatherV1.5.2&runtime=7"
        "&dateutc=2026-05-01+12:00:00&tempf=70.3&humidity=32&freq=868M&model=WS2900_V2.01.10",
        {},
        [
            (AT, "34271334ED1FADA6D8B988B14267E55D", "tempf", 70.3),
            (AT, "34271334ED1FADA6D8B988B14267E55D", "humidity", 32.0),
        ],
    ),
    "telegraf_json": (
        """{"metrics":[{"fields":{"usage_idle":91.5},"name":"cpu","tags":{"cpu":"cpu0","host":"r"},
        "timestamp":1777636800},{"fields":{"usage_idle":91.5,"text":"x"},"name":"cpu",
        "tags":{"cpu":"cpu=1","host":"r"},"timestamp":1777636800}]}""",
        {},
        [
            (AT, "r", "cpu.usage_idle,cpu=cpu0", 91.5),
            (AT, "r", r"cpu.usage_idle,cpu=cpu\=1", 91.5),
        ],
    ),
    "vector": (
        '[{"host":"r","timestamp":"2026-05-01T12:00:00Z","message":"ok","load":{"one":0.5}}]',
        {},
        [(AT, "r", "load.one", 0.5)],
    ),
    "fluentbit": (
        '{"date":1777636800.5,"host":"r","cpu_p":1.5}\n{"date":1777636801.5,"host":"r","cpu_p":2}\n',
        {},
        [(AT + 500_000, "r", "cpu_p", 1.5), (AT + 1_500_000, "r", "cpu_p", 2.0)],
    ),
}

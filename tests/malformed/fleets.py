"""Fleets from files: devices, availability and rates."""

import json
from pathlib import Path
from typing import Any

from malformed.case import Call, Case

from fedjax_het import fleet

DEVICES = "device,class,gflops,down_mbps\na,low,1,8\nb,high,2,16\n"
TIMES = "device,on_s,off_s\na,0,10\nb,5,20\n"
RATES = "device,time_s,up_mbps\na,0,8\nb,0,16\nb,4,1\n"


def read(devices: str | bytes = DEVICES, **options: Any) -> Call:
    """The fleet of a file with this content; `times` and `rates` are contents as well."""

    def call(here: Path) -> Any:
        path = here / "d.csv"
        path.write_bytes(devices if isinstance(devices, bytes) else devices.encode())
        given = dict(options)
        for name, option, suffix in (
            ("times", "availability", "csv"),
            ("traces", "availability", "json"),
            ("rates", "rates", "csv"),
        ):
            if name in given:
                file = here / f"{option}.{suffix}"
                content = given.pop(name)
                file.write_text(content if isinstance(content, str) else json.dumps(content))
                given[option] = file
        return fleet.read_csv(path, **given)

    return call


def records(content: Any, reader: Any = fleet.read_json) -> Call:
    def call(here: Path) -> Any:
        path = here / "d.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return reader(path)

    return call


def flash(line: str) -> Call:
    good = "2020-01-28 06:30:00\tscreen_lock\n"
    return read(traces={name: {"messages": good + line} for name in "ab"})


def fedscale(**changed: Any) -> Call:
    good = {"active": [1], "inactive": [5], "finish_time": 9}
    return read(traces={"a": {**good, **changed}, "b": good})


FILES: list[Case] = [
    (lambda here: fleet.read_csv(here / "no.csv"), "no.csv | does not exist | device,class,gflops"),
    (lambda here: fleet.read_csv(here), " | is a directory | one line per device"),
    (read(""), "d.csv | is empty | one line per device"),
    (read("device,gflops\n\n"), "d.csv | names and no line of values | one line per device"),
    (
        read(b"device,gflops\n\xe4,1\n"),
        "d.csv | not UTF-8 text (byte 14) | save it as CSV in UTF-8",
    ),
    (read('device,gflops\n"a"x,1\n'), "d.csv, line 2 | is not CSV | one line per device"),
    (read("device,gflops\na,1\nb\n"), "d.csv, line 3: 1 values | must be 2 | commas"),
    (read("device;gflops\na;1,5\n"), "line 1: names separated by semicolons | by commas | a point"),
    (read("device\tgflops\na\t1\n"), "line 1: names separated by tabs | by commas | a point"),
    (read("device,,gflops\na,2,1\n"), "line 1: column 2 | has no name | give it one"),
    (read("gflops,gflops\n2,1\n"), "line 1: column 'gflops' | is there twice | rename one"),
]

COLUMNS: list[Case] = [
    (
        read("device,gflop\na,1\n"),
        "line 1, column 'gflop' | is not a column that is known here | did you mean 'gflops'?",
    ),
    (
        read("gflops,mflops\n1,2\n"),
        "line 1, column 'mflops' | together with 'gflops', both are flops_per_s | take one away",
    ),
    (
        read("GFLOPS,gflops\n1,2\n"),
        "line 1, columns 'GFLOPS' and 'gflops' | must not both be 'gflops' | take one away",
    ),
    (
        read(columns={"speed": "gflops"}),
        "columns = {'speed': 'gflops'} | no column 'speed' | name one of device, class, gflops",
    ),
    (
        read(columns={"class": "model"}),
        "line 1, column 'class' | is not a column that is known | columns = {'class': ''}",
    ),
    (read("device,class\na,low\n"), "line 1 | lacks the speed of the devices | 'gflops'"),
    (
        read("gflops,nj_per_flop,up_mbps\n1,2,0\n"),
        "line 2, column 'up_mbps': '0' | must be positive | correct the value",
    ),
    (read("gflops\n1\n\nfast\n"), "line 4, column 'gflops': 'fast' | must be a number | correct"),
    (read('gflops\n"1,5"\n'), "line 2, column 'gflops': '1,5' | a point for decimals | correct"),
    (
        read("gflops,memory_mb\n1,\n"),
        "line 2, column 'memory_mb': '' | a number | correct the value",
    ),
    (read("gflops\n1_000\n"), "line 2, column 'gflops': '1_000' | must be a number | correct"),
    (read("gflops\nnan\n"), "line 2, column 'gflops': 'nan' | must be a number | correct"),
    (read("gflops\n1e999\n"), "line 2, column 'gflops': '1e999' | must be a number | correct"),
    (read("gflops\n1\ninf\n"), "line 3, column 'gflops': 'inf' | positive and finite | leave"),
    (read("gflops\n-1\n"), "line 2, column 'gflops': '-1' | must be positive and finite | leave"),
    (
        read("gflops\n1e25\n"),
        "line 2, column 'gflops': '1e25' | to 1e+30 as flops_per_s | its unit",
    ),
    (
        read("gflops,failure_rate\n1,0.5\n1,1\n"),
        "line 3, column 'failure_rate': '1' | must be less than 1 | leave the device out",
    ),
    (
        read("gflops,joins_s,leaves_s\n1,5,5\n"),
        "line 2, column 'leaves_s': '5' | must be after joins_s | leave the device out",
    ),
    (read("gflops,battery_wh\n1,5\n"), "d.csv: battery_joules = 18000.0 | never be spent | prices"),
    (
        read("device,gflops\na,1\nb,1\na,2\n"),
        "line 4, column 'device': 'a' | must not be there twice | name every device",
    ),
    (read("device,gflops\n ,1\n"), "line 2, column 'device': ' ' | must be text | fill it in"),
    (
        read(f"class,gflops\n{'x' * 101},1\n"),
        "line 2, column 'class': 'xxxx | must have at most 100 characters | shorten it",
    ),
]

JSON: list[Case] = [
    (records("[]"), "d.json: [] | must be a list of objects | one line per device"),
    (records('{"a": 1}'), "d.json: {'a': 1} | or an object of objects | one line per device"),
    (records('{"a": {}, "a": {}}'), "d.json | the name 'a' is there twice | one line per device"),
    (
        records([{"gflops": 1}, {"gflops": 1, "class": "x"}]),
        "record 1: lacks [], adds ['class'] | fields of record 0 | give all records the same",
    ),
    (
        records({"a": {"gflops": 1}, "b": {"gflops": None}}),
        "record 'b', column 'gflops': None | must be a number | correct the value",
    ),
    (
        records({"a": {"gflops": 1, "device": "x"}}),
        "record 'a', column 'device' | is the name of the record | take the field away",
    ),
    (
        records({"a": {"computation": 1}}, fleet.read_fedscale),
        "record 'a' | lacks 'communication' | client_device_capacity",
    ),
    (
        records({"a": {"computation": 0, "communication": 1}}, fleet.read_fedscale),
        "record 'a', column 'computation': 0 | must be positive | leave the device out",
    ),
]

NUMBERS: list[Case] = [
    (
        read(num_clients=5),
        "d.csv: 2 devices for 5 clients | equal in number | assignment = 'dealt'",
    ),
    (
        lambda here: fleet.build("csv", 2),
        "option of fleet 'csv' 'path' is missing | must be given | add path",
    ),
    (read(assignment="random"), "assignment 'random' | one of dealt, in_order | choose one"),
    (read(trace_assignment="id"), "trace_assignment 'id' | by_id, dealt | choose one"),
    (read(seed=-1), "seed = -1 | whole number >= 0 | any such number"),
    (read(num_clients=0, assignment="dealt"), "num_clients = 0 | >= 1 | clients of the data"),
    (read(period_s=60.0), "period_s = 60.0 without availability | intervals | leave it out"),
]

OVER_TIME: list[Case] = [
    (
        read(times="device,on_s\na,1\n"),
        "line 1: 0 columns for 'off' | off_s, off_min | one line per",
    ),
    (
        read(times="device,on_s,end\na,1,2\n"),
        "line 1, column 'end' | not a column that is | rename",
    ),
    (read(times="on_s,off_s\n1,2\n"), "availability.csv, line 1 | lacks 'device' | one line per"),
    (
        read(times="device,on_s,off_s\na,0,10\nb,20,20\n"),
        "line 3, column 'off_s': '20' | must be after the time at which it goes on | correct it",
    ),
    (
        read(times="device,on_s,off_s\na,-1,10\n"),
        "line 2, column 'on_s': '-1' | a time >= 0 and finite | count from the start",
    ),
    (
        read(times="device,on_s,off_s\na,1,inf\n"),
        "line 2, column 'off_s': 'inf' | a time >= 0 and finite | at the latest",
    ),
    (
        read(times=TIMES, period_s=15.0),
        "line 3, column 'off_s': '20' | must be at most period_s = 15 | raise period_s",
    ),
    (
        read(times="device,on_s,off_s\na,0,10\n"),
        "availability.csv: device 'b' | is never on in it, or has no record | add its lines",
    ),
    (
        read("gflops\n1\n2\n", times=TIMES),
        "the devices have no names | column 'device' in both files | trace_assignment",
    ),
    (
        read(traces=[1]),
        "availability.json: [1] | an object for every device | state traces of FLASH",
    ),
    (
        read(traces={"a": {"on": 1}}),
        "records with ['on'] | must have 'messages', as in FLASH | availability traces of FedScale",
    ),
    (
        read(traces={"a": {"messages": 1}}),
        "device 'a': messages = 1 | must be text | state traces of FLASH",
    ),
    (
        flash("2020-01-28\twifi"),
        "device 'a', message 2: '2020-01-28\\twifi' | must be a time as | correct the message",
    ),
    (
        flash("2020-01-28 06:30:01\tlanded"),
        "device 'a', message 2: state 'landed' | a percentage or one of battery_charged_on | leave",
    ),
    (flash(""), "availability.json | no device in it is ever on | give another file"),
    (
        read(traces={"a": {"messages": ""}}, period_s=9.0),
        "period_s = 9.0 with | belongs to intervals in a CSV file | leave it out",
    ),
    (
        fedscale(inactive=[1]),
        "device 'a', interval 0: 1 to 1 s | end after that | correct the record",
    ),
    (fedscale(active=[1, 2]), "2 times in 'active' and 1 in 'inactive' | equal | state traces"),
    (fedscale(active=["x"]), "device 'a': active = ['x'] | numbers of seconds | state traces"),
    (fedscale(finish_time=None), "finish_time = [None] | numbers of seconds | state traces"),
    (
        fedscale(finish_time=0),
        "device 'a': finish_time = 0 | must be positive | correct the record",
    ),
    (read(rates="device,time_s\na,0\n"), "rates.csv, line 1 | lacks a rate | one line per change"),
    (read(rates="device,up_mbps\na,1\n"), "rates.csv, line 1 | lacks 'time_s' | one line per"),
    (
        read(rates="device,time_s,up_mbps\na,0,1\nb,1,1\n"),
        "rates.csv, line 3, column 'time_s': '1' | must start at 0 and increase | sort its lines",
    ),
    (
        read(rates="device,time_s,up_mbps\na,0,1\nb,0,1\na,0,2\n"),
        "rates.csv, line 4, column 'time_s': '0' | must start at 0 and increase | sort its lines",
    ),
    (
        read(rates="device,time_s,up_mbps\na,0,1\nb,0,-1\n"),
        "rates.csv, line 3, column 'up_mbps': '-1' | a rate >= 0 and finite | correct it",
    ),
    (
        read(rates="device,time_s,up_mbps\na,0,1\nb,0,0\nb,1,0\n"),
        "rates.csv, line 3, column 'up_mbps': '0' | has no rate above 0 | leave the device out",
    ),
    (
        read(rates="device,time_s,up_mbps,up_kbps\na,0,1,1\nb,0,1,1\n"),
        "line 1, column 'up_mbps' | is a second column of uplink_bytes_per_s | keep one of them",
    ),
    (
        read(rates=RATES.replace("up", "down")),
        "rates.csv: rates for downlink_bytes_per_s | must not be in | out of one of the files",
    ),
    (
        read("device,gflops,link_jitter\na,1,1\nb,1,1\n", rates=RATES),
        "link_jitter up to 1.0 together with a trace | already varies | set link_jitter = 0",
    ),
]

CASES = [*FILES, *COLUMNS, *JSON, *NUMBERS, *OVER_TIME]

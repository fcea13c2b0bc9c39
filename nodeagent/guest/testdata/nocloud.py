"""What cloud-init makes of the disk in a file: nocloud.py CLOUDINIT IMAGE."""
import json
import os
import subprocess
import sys
import tempfile

sys.path.insert(0, sys.argv[1])
from cloudinit import helpers, util
from cloudinit.net import netplan, network_state, networkd
from cloudinit.sources import DataSourceNoCloud

image = sys.argv[2]


def find_devs_with(criteria=None, **_):
    """As cloud-init's own, with the image for the only disk."""
    found = subprocess.run(["blkid", "-p", "-o", "full", image], capture_output=True, text=True, check=True).stdout
    key, value = criteria.split("=")
    return [image] if f'{key}="{value}"' in found else []


def mount_cb(device, callback, data=None, **_):
    """As cloud-init's own, by another reader: this machine's kernel may have no iso9660."""
    with tempfile.TemporaryDirectory() as mounted:
        names = subprocess.run(["isoinfo", "-R", "-f", "-i", device], capture_output=True, text=True, check=True).stdout
        for name in names.split():
            content = subprocess.run(["isoinfo", "-R", "-x", name, "-i", device], capture_output=True, check=True).stdout
            with open(mounted + name, "wb") as f:
                f.write(content)
        return callback(mounted + "/", data)


util.find_devs_with = find_devs_with
util.mount_cb = mount_cb
with tempfile.TemporaryDirectory() as work:
    paths = helpers.Paths({"cloud_dir": work, "run_dir": work})
    source = DataSourceNoCloud.DataSourceNoCloud({}, None, paths)
    if not source.get_data():
        sys.exit("cloud-init finds no data source")
    state = network_state.parse_net_config_data(source.network_config)
    rendered = {}
    for name, renderer in [
        ("netplan", netplan.Renderer({"netplan_path": "conf/netplan", "netplan_header": "", "postcmds": False})),
        ("networkd", networkd.Renderer({"network_conf_dir": "/conf/"})),
    ]:
        target = os.path.join(work, name)
        os.makedirs(os.path.join(target, "conf"))
        renderer.render_network_state(state, target=target)
        for directory, _, files in os.walk(target):
            for file in files:
                with open(os.path.join(directory, file)) as f:
                    rendered[name] = rendered.get(name, "") + f.read()
    json.dump(
        {
            "instance": source.get_instance_id(),
            "hostname": str(source.get_hostname(fqdn=True)),
            "userData": source.get_userdata_raw(),
            "mode": source.dsmode,
            "rendered": rendered,
        },
        sys.stdout,
        default=lambda o: o.decode(),
    )

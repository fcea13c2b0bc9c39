package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/lab"
	"github.com/rackweft/rackweft/lab/rig"
)

// daemon is one of the units, and how its command line or its configuration is
// made wrong on a host, and right again.
type daemon struct{ unit, spoil, mend string }

func daemons() []daemon {
	const dropIn = "/run/systemd/system/nodeagent-speaker.service.d"
	return []daemon{
		{"bootd.service", "echo 'bogus: 1' >>/etc/rackweft/bootd.yaml", "sed -i /^bogus/d /etc/rackweft/bootd.yaml"},
		{"nodeagent.service", "cp /etc/rackweft/nodeagent.yaml /root/ && echo '{\"bogus\": 1}' >/etc/rackweft/nodeagent.yaml", "cp /root/nodeagent.yaml /etc/rackweft/"},
		{"nodeagent-speaker.service", "mkdir -p " + dropIn + " && printf '[Service]\\nExecStart=\\nExecStart=/opt/rackweft/bin/nodeagent speaker --bogus\\n' >" + dropIn + "/bogus.conf && systemctl daemon-reload",
			"rm -r " + dropIn + " && systemctl daemon-reload"},
	}
}

// units has the daemons under a real systemd, on a host of the rack: what would only fail the same again stays stopped,
// and whatever else ends them, panic and watchdog included, has them started again. TestFurtherUnits has the fault and
// the panic of every daemon.
func units(t *testing.T, r *rig.Rig, h *host) {
	installBootd(t, r, h)
	bootd, agent := daemons()[0], daemons()[1]
	t.Run("fault "+bootd.unit, func(t *testing.T) { faultStaysStopped(t, h.For(t), bootd) })
	t.Run("panic "+agent.unit, func(t *testing.T) { panicComesBack(t, h.For(t), agent) })
	t.Run("watchdog", func(t *testing.T) { h.For(t).comesBack(daemons(), "STOP", "Watchdog timeout") })
	t.Run("speaker inside of a Network", func(t *testing.T) { insideSandbox(t, r.For(t), h.For(t)) })
}

// TestFurtherUnits does to each daemon what TestRack does to one.
func TestFurtherUnits(t *testing.T) {
	key := newKey(t)
	r := rig.Up(t, rig.Options{Machines: lab.DefaultMachines()[:1], Manifests: withLogin(key)})
	r.WaitActive(bios)
	h := dialHost(t, r, bios, key)
	installBootd(t, r, h)
	for _, d := range daemons() {
		t.Run("fault "+d.unit, func(t *testing.T) { faultStaysStopped(t, h.For(t), d) })
	}
	for _, d := range daemons() {
		t.Run("panic "+d.unit, func(t *testing.T) { panicComesBack(t, h.For(t), d) })
	}
}

// show is a property of a unit.
func (h *host) show(unit, property string) string {
	return h.run("systemctl show -P " + property + " " + unit)
}

// fetch has the host download a file of this machine over HTTP, without the cost of SSH on an emulated processor.
func (h *host) fetch(r *rig.Rig, from, to string) {
	h.t.Helper()
	listener, err := r.Rack.Listen("198.18.8.1:0") // bootd's address on the production network
	if err != nil {
		h.t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, from)
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() { _ = server.Close(); <-served }()
	h.run("curl -sSf -o " + to + " http://" + listener.Addr().String() + "/")
}

// installBootd has the host run a bootd of its own, which serves nobody.
func installBootd(t *testing.T, r *rig.Rig, h *host) {
	t.Helper()
	h.fetch(r, r.Binaries.Path("bootd"), "/usr/local/bin/bootd")
	h.fetch(r, "../../systemd/bootd.service", "/etc/systemd/system/bootd.service")
	h.run("chmod 755 /usr/local/bin/bootd && printf 'nodeagent: /opt/rackweft/bin/nodeagent\\nipxe: /etc/rackweft\\nreserve: 1Mi\\n' >/etc/rackweft/bootd.yaml")
	h.run("systemctl daemon-reload && systemctl start bootd.service")
	for _, d := range daemons() {
		h.wait(d.unit+" runs", func() bool { return h.show(d.unit, "SubState") == "running" })
	}
}

func faultStaysStopped(t *testing.T, h *host, d daemon) {
	h.run(d.spoil)
	h.run("systemctl restart " + d.unit + " || true")
	h.wait("it fails", func() bool { return h.show(d.unit, "ActiveState") == "failed" })
	// One that is to be started again is "activating", by way of "auto-restart".
	if state, code := h.show(d.unit, "SubState"), h.show(d.unit, "ExecMainStatus"); state != "failed" || code != "78" {
		t.Errorf("%s is %s with exit code %s:\n%s", d.unit, state, code, h.run("journalctl -n 20 --no-pager -u "+d.unit))
	}
	h.run(d.mend)
	h.run("systemctl start " + d.unit)
	h.wait("it runs again", func() bool { return h.show(d.unit, "SubState") == "running" })
}

// panicComesBack: on SIGQUIT Go prints all stacks and exits as after a panic.
func panicComesBack(t *testing.T, h *host, d daemon) {
	h.For(t).comesBack([]daemon{d}, "QUIT", "status=2/INVALIDARGUMENT")
}

// comesBack ends daemons by a signal, waits until each has been started again, and
// looks whether the journal says that it ended so.
func (h *host) comesBack(list []daemon, signal, says string) {
	h.t.Helper()
	before := map[string]string{}
	for _, d := range list {
		before[d.unit] = mainPID(h, d.unit)
		h.run("kill -" + signal + " " + before[d.unit])
	}
	for _, d := range list {
		h.wait(d.unit+" runs again", func() bool {
			now := mainPID(h, d.unit)
			return now != before[d.unit] && now != "0" && h.show(d.unit, "SubState") == "running"
		})
		if journal := h.run("journalctl --no-pager -o cat _PID=1 UNIT=" + d.unit); !strings.Contains(journal, says) {
			h.t.Errorf("%s was not ended so, there is no %q:\n%s", d.unit, says, journal)
		}
	}
}

// insideSandbox starts a speaker as nodeagent does inside of a Network: with the
// properties of the host's own unit, of which a transient unit takes not all that
// a file may have.
func insideSandbox(t *testing.T, r *rig.Rig, h *host) {
	listen := r.Rack.Machine(h.name).Config().ProductionAddress()
	h.run("ip netns add red && ip -n red link set lo up && ip -n red addr add " + listen.String() + "/32 dev lo && mkdir -p /run/rackweft/nodeagent/speakers && cp /var/lib/rackweft/nodeagent/speaker.json /run/rackweft/nodeagent/speakers/part")
	h.run(`sed -n '/^\[Service\]/,/^\[Install\]/p' /etc/systemd/system/nodeagent-speaker.service |
		grep -E '^[A-Z]' | grep -vE '^(Type|ExecStart|StateDirectory|StateDirectoryMode|RuntimeDirectory|RuntimeDirectoryMode|RuntimeDirectoryPreserve)=' | sed 's/^/--property=/' >/root/properties`)
	h.run(`mapfile -t properties </root/properties
		systemd-run --quiet --collect --service-type=notify --unit=inside.service "${properties[@]}" \
		  --property=NetworkNamespacePath=/run/netns/red --property=ReadWritePaths=/run/rackweft/nodeagent/speakers --property=StartLimitIntervalSec=0 \
		  /opt/rackweft/bin/nodeagent speaker --namespace /run/netns/red --part /run/rackweft/nodeagent/speakers/part --socket /run/rackweft/nodeagent/speakers/socket ||
		{ journalctl --no-pager -n 30 -u inside.service; exit 1; }`)
	if state := h.show("inside.service", "SubState"); state != "running" {
		t.Errorf("it is %s:\n%s", state, h.run("journalctl --no-pager -n 30 -u inside.service"))
	}
	status := h.run(fmt.Sprintf("grep -E '^(Seccomp|NoNewPrivs):' /proc/%s/status | tr -s '[:space:]' ' '", mainPID(h, "inside.service")))
	if status != "NoNewPrivs: 1 Seccomp: 2" {
		t.Errorf("its process has %q", status)
	}
	h.run("systemctl stop inside.service && ip netns del red")
}

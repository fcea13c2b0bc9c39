package bmc_test

import (
	"strings"
	"testing"

	"github.com/rackweft/rackweft/lab/bmc"
)

func TestLogins(t *testing.T) {
	tests := []struct {
		login    bmc.Login
		session  int // status of a login
		basic    int // status of a request with basic authentication
		services bool
	}{
		{bmc.AnyLogin, 201, 200, true},
		{bmc.BasicOnly, 404, 200, false},
		{bmc.BasicLicensed, 403, 200, true},
		{bmc.SessionsOnly, 201, 401, true},
	}
	for _, tt := range tests {
		t.Run(string(tt.login), func(t *testing.T) {
			_, _, address := serve(t, func(c *bmc.Config) { c.Login = tt.login })
			c := newClient(t, address)
			start := c.want(200, "GET", "/redfish/v1", "", "Authorization", "")
			if got := start["SessionService"] != nil && start["Links"] != nil; got != tt.services {
				t.Errorf("the root shows sessions: %v, want %v", got, tt.services)
			}
			c.want(tt.basic, "GET", system, "")
			response, answer := c.do("POST", sessions, login)
			if response.StatusCode != tt.session {
				t.Fatalf("login: %s, want %d: %v", response.Status, tt.session, answer)
			}
			if tt.session == 201 {
				c.want(200, "GET", system, "", "X-Auth-Token", response.Header.Get("X-Auth-Token"))
			}
			if tt.basic == 200 {
				c.crawl()
			}
		})
	}
}

func TestSessionsWithoutLocation(t *testing.T) {
	server, _, address := serve(t, nil)
	c := newClient(t, address)
	server.HideSessions(true)
	response, body := c.do("POST", sessions, login)
	if response.StatusCode != 201 || response.Header.Get("X-Auth-Token") == "" || response.Header.Get("Location") != "" || body["@odata.id"] != nil {
		t.Errorf("login: %s, Location %q, body %v", response.Status, response.Header.Get("Location"), body)
	}
	server.HideSessions(false)
	if response, _ := c.do("POST", sessions, login); response.Header.Get("Location") == "" {
		t.Error("no Location after the fault")
	}
}

func TestPasswordMustBeChanged(t *testing.T) {
	server, _, address := serve(t, nil)
	c := newClient(t, address)
	server.ExpirePassword()
	response, body := c.do("POST", sessions, login)
	if info, _ := body["@Message.ExtendedInfo"].([]any); response.StatusCode != 201 || len(info) != 1 {
		t.Fatalf("login: %s, %v", response.Status, body)
	}
	token := []string{"X-Auth-Token", response.Header.Get("X-Auth-Token")}
	refused := c.want(403, "GET", system, "", token...)
	described, _ := refused["error"].(map[string]any)
	if code, _ := described["code"].(string); !strings.HasSuffix(code, "PasswordChangeRequired") {
		t.Errorf("refused with %v", refused)
	}
	c.want(403, "POST", reset, `{"ResetType":"On"}`)
	const account = "/redfish/v1/AccountService/Accounts/1"
	c.want(200, "GET", account, "", token...)
	c.want(200, "PATCH", account, `{"Password":"`+password+`"}`, token...)
	c.want(200, "GET", system, "", token...)
}

package balancer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/testing/bench/measure"
)

// The app behind all three: nginx, which answers for less CPU time than any of
// the proxies takes.
const appConf = `daemon off;
worker_processes 1;
pid %[1]s/app.pid;
error_log %[1]s/app-error.log;
events { worker_connections 4096; }
http {
	access_log off;
	default_type text/plain;
	sendfile on;
	tcp_nopush on;
	keepalive_requests 100000000;
	client_body_temp_path %[1]s/app-body;
	proxy_temp_path %[1]s/app-proxy;
	fastcgi_temp_path %[1]s/app-fastcgi;
	uwsgi_temp_path %[1]s/app-uwsgi;
	scgi_temp_path %[1]s/app-scgi;
	server {
		listen 10.42.0.2:8080;
		listen 10.42.0.3:8080;
		root %[1]s/www;
	}
}
`

// As an administrator would have it who knows that it is for this: kept
// connections to the app, no log of accesses (ours keeps none), the same
// headers about the client.
const nginxConf = `daemon off;
worker_processes %[2]d;
pid %[1]s/nginx.pid;
error_log %[1]s/nginx-error.log;
events { worker_connections 8192; }
http {
	access_log off;
	keepalive_requests 100000000;
	client_body_temp_path %[1]s/nginx-body;
	proxy_temp_path %[1]s/nginx-proxy;
	fastcgi_temp_path %[1]s/nginx-fastcgi;
	uwsgi_temp_path %[1]s/nginx-uwsgi;
	scgi_temp_path %[1]s/nginx-scgi;
	upstream app {
		server 10.42.0.2:8080;
		server 10.42.0.3:8080;
		keepalive 64;
		keepalive_requests 100000000;
	}
	server {
		listen 127.0.0.1:%[3]d ssl http2;
		server_name %[4]s;
		ssl_certificate %[1]s/peer.pem;
		ssl_certificate_key %[1]s/peer.pem;
		ssl_protocols TLSv1.2 TLSv1.3;
		location / {
			proxy_pass http://app;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header Host $host;
			proxy_set_header X-Forwarded-For $remote_addr;
			proxy_set_header X-Forwarded-Host $host;
			proxy_set_header X-Forwarded-Proto https;
		}
	}
}
`

const haproxyConf = `global
	nbthread %[2]d
	maxconn 8192
	ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
	mode http
	timeout connect 2s
	timeout client 60s
	timeout server 60s
	http-reuse always
frontend web
	bind 127.0.0.1:%[3]d ssl crt %[1]s/peer.pem alpn h2,http/1.1
	http-request set-header X-Forwarded-For %%[src]
	http-request set-header X-Forwarded-Host %%[req.hdr(host)]
	http-request set-header X-Forwarded-Proto https
	default_backend app
backend app
	balance leastconn
	server a 10.42.0.2:8080
	server b 10.42.0.3:8080
`

// startApp starts the app with bodies of 1 KB and 1 MB.
func (s *site) startApp(ctx context.Context) error {
	www := filepath.Join(s.env.Dir, "www")
	if err := os.MkdirAll(www, 0o755); err != nil {
		return err
	}
	// The worker is another user.
	if err := os.Chmod(s.env.Dir, 0o755); err != nil {
		return err
	}
	for name, size := range map[string]int{"1k": 1 << 10, "1m": 1 << 20} {
		if err := os.WriteFile(filepath.Join(www, name), []byte(strings.Repeat("0123456789abcdef", size/16)), 0o644); err != nil {
			return err
		}
	}
	c, err := s.nginx("app", fmt.Sprintf(appConf, s.env.Dir), s.rest)
	if err != nil {
		return err
	}
	return c.Await(ctx, 20*time.Second, func(ctx context.Context) error {
		conn, err := s.net.DialContext(ctx, "tcp", "10.42.0.2:8080")
		if err == nil {
			conn.Close()
		}
		return err
	})
}

// startPeers starts nginx and haproxy with a certificate as ours has it.
func (s *site) startPeers(ctx context.Context) error {
	cert, key, err := s.ca.Issue(pki.Request{CommonName: hostOf(0), Hosts: []string{hostOf(0)}, Server: true})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.env.Dir, "peer.pem"), append(cert, key...), 0o600); err != nil {
		return err
	}
	n, err := s.nginx("nginx", fmt.Sprintf(nginxConf, s.env.Dir, len(s.measured), nginxPort, hostOf(0)), s.measured)
	if err != nil {
		return err
	}
	file := filepath.Join(s.env.Dir, "haproxy.cfg")
	if err := os.WriteFile(file, fmt.Appendf(nil, haproxyConf, s.env.Dir, len(s.measured), haproxyPort), 0o600); err != nil {
		return err
	}
	h, err := s.start("haproxy", s.net.Command(context.Background(), s.measured, "haproxy", "-db", "-f", file))
	if err != nil {
		return err
	}
	s.proxies["nginx"], s.proxies["haproxy"] = proxy{n.PID, nginxPort}, proxy{h.PID, haproxyPort}
	return errors.Join(s.awaitProxy(ctx, n, nginxPort), s.awaitProxy(ctx, h, haproxyPort))
}

func (s *site) nginx(name, conf string, cores []int) (*measure.Child, error) {
	file := filepath.Join(s.env.Dir, name+".conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		return nil, err
	}
	return s.start(name, s.net.Command(context.Background(), cores, "nginx", "-e", filepath.Join(s.env.Dir, name+"-start.log"), "-c", file))
}

// awaitProxy waits until the app answers through a proxy.
func (s *site) awaitProxy(ctx context.Context, c *measure.Child, port int) error {
	return c.Await(ctx, 60*time.Second, func(ctx context.Context) error {
		resp, err := s.get(ctx, port, hostOf(0))
		if err != nil {
			return err
		}
		if resp.TLS.Version != tls.VersionTLS13 {
			return fmt.Errorf("it speaks TLS %x", resp.TLS.Version)
		}
		return nil
	})
}

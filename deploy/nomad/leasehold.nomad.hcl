# Hosts of Leasehold under Nomad: `nomad job run leasehold.nomad.hcl`, in the folder of this file. docs/deploying.md explains it.
job "leasehold" {
  # `system` instead runs a host on each machine; then `count`, `spread` and `update.auto_revert` go.
  type = "service"

  group "hosts" {
    count = 3

    network {
      mode = "bridge"
      port "greeter" { to = 8080 }
      port "metrics" { to = 9100 }
    }

    # Machines of one rack fail together.
    spread {
      attribute = "${meta.rack}"
    }

    update {
      max_parallel     = 1
      health_check     = "checks"
      min_healthy_time = "5s"
      healthy_deadline = "5m"
      auto_revert      = true
    }

    # How a machine is emptied: `nomad node drain`.
    migrate {
      max_parallel     = 1
      health_check     = "checks"
      min_healthy_time = "5s"
    }

    # A machine that lost the servers keeps its hosts: etcd decides who is found, not Nomad.
    disconnect {
      lost_after = "1h"
      replace    = true
      reconcile  = "keep_original"
    }

    restart {
      attempts = 10
      interval = "10m"
      delay    = "5s"
      mode     = "delay"
    }

    service {
      name     = "leasehold"
      provider = "nomad"
      port     = "metrics"

      # Decides whether an update goes on. An outage of etcd is no fault of a host that serves.
      check {
        name     = "serving"
        type     = "http"
        path     = "/readyz?etcd=optional"
        interval = "2s"
        timeout  = "2s"
      }

      # A host that waits for etcd is live: starting it again would only delay its recovery.
      check {
        name     = "live"
        type     = "http"
        path     = "/healthz"
        interval = "10s"
        timeout  = "5s"

        check_restart {
          limit = 3
          grace = "2m"
        }
      }
    }

    task "host" {
      driver = "docker"
      user   = "65532:65532"

      config {
        image           = "leasehold:0.1.0"
        args            = ["run", "/local/services.yaml"]
        ports           = ["greeter", "metrics"]
        readonly_rootfs = true
        cap_drop        = ["all"]
        security_opt    = ["no-new-privileges"]

        mount {
          type   = "tmpfs"
          target = "/run/leasehold"
        }
        mount {
          type   = "tmpfs"
          target = "/var/cache/leasehold"
        }
      }

      template {
        data        = file("services.yaml")
        destination = "local/services.yaml"
        change_mode = "noop"
      }

      template {
        data        = "{{ with nomadVar \"nomad/jobs/leasehold\" }}{{ .etcd_password }}{{ end }}"
        destination = "secrets/etcd-password"
        # The file is read again for each sign-in.
        change_mode = "noop"
        perms       = "400"
        uid         = 65532
        gid         = 65532
      }

      # SIGTERM drains. The time is the sum of docs/draining.md: 6 s for keys, settle_time, drain_timeout, stop_timeout, 5 s for leases;
      # `max_kill_timeout` of Nomad's clients, 30 s by default, has to permit it.
      kill_signal  = "SIGTERM"
      kill_timeout = "60s"

      # `memory_max`, where Nomad's scheduler permits it, is what `leasehold check` adds up for all instances, and some for the host.
      resources {
        cpu        = 500
        memory     = 256
        memory_max = 1024
      }
    }
  }
}

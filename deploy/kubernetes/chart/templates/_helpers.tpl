{{- /* Names, labels, the configuration, and times that several manifests share. */ -}}

{{- define "leasehold.name" -}}
{{- if contains "leasehold" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-leasehold" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "leasehold.selector" -}}
app.kubernetes.io/name: leasehold
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "leasehold.labels" -}}
{{ include "leasehold.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "leasehold.serviceAccount" -}}
{{- .Values.serviceAccount | default (include "leasehold.name" .) }}
{{- end }}

{{- define "leasehold.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- /* Clients of a Service do not see etcd, and no key of a pod may be left for `settle_time` to take effect. */ -}}
{{- define "leasehold.preStopSeconds" -}}
{{- ternary .Values.drain.settle 0 .Values.service.enabled }}
{{- end }}

{{- /* The sum of docs/draining.md, and 5 s for the container runtime. */ -}}
{{- define "leasehold.graceSeconds" -}}
{{- with .Values.drain }}
{{- add (include "leasehold.preStopSeconds" $ | int) 6 .settle .requests .stop 5 5 }}
{{- end }}
{{- end }}

{{- /* Ports of etcd's endpoints, each once. */ -}}
{{- define "leasehold.etcdPorts" -}}
{{- $ports := list }}
{{- range .Values.etcd.endpoints }}
{{- $port := regexFind "[0-9]+/?$" . | trimSuffix "/" }}
{{- if not $port }}{{ fail (printf "etcd.endpoints: %q has no port" .) }}{{ end }}
{{- $ports = append $ports $port }}
{{- end }}
{{- join " " (uniq $ports) }}
{{- end }}

{{- /* The name of a port of a service: unique, and within the 15 characters that Kubernetes permits. */ -}}
{{- define "leasehold.portName" -}}
port-{{ .port }}
{{- end }}

{{- define "leasehold.configuration" -}}
{{- $any := ternary "[::]" "0.0.0.0" (eq .Values.ipFamily "IPv6") }}
{{- $own := ternary "[${POD_IP}]" "${POD_IP}" (eq .Values.ipFamily "IPv6") }}
{{- $etcd := dict "endpoints" .Values.etcd.endpoints }}
{{- with .Values.etcd }}
{{- if .user }}{{ $_ := set $etcd "user" .user }}{{ end }}
{{- if .passwordSecret }}{{ $_ := set $etcd "password_file" "/run/secrets/etcd-password/password" }}{{ end }}
{{- if .tlsSecret }}
{{- $tls := dict "ca" "/run/secrets/etcd-tls/ca.crt" }}
{{- if .clientCertificate }}
{{- $_ := set $tls "cert" "/run/secrets/etcd-tls/tls.crt" }}
{{- $_ := set $tls "key" "/run/secrets/etcd-tls/tls.key" }}
{{- end }}
{{- if .serverName }}{{ $_ := set $tls "server_name" .serverName }}{{ end }}
{{- $_ := set $etcd "tls" $tls }}
{{- end }}
{{- end }}
{{- $services := list }}
{{- range $service := .Values.services }}
{{- range list "listen" "advertise" "tls" }}
{{- if hasKey $service . }}{{ fail (printf "services: %s: the chart sets %s, from port or tlsSecret" $service.name .) }}{{ end }}
{{- end }}
{{- range list "settle_time" "drain_timeout" "stop_timeout" }}
{{- if hasKey ($service.limits | default dict) . }}{{ fail (printf "services: %s: limits.%s is set by drain, from which the grace period follows" $service.name .) }}{{ end }}
{{- end }}
{{- $port := int $service.port }}
{{- $one := omit $service "port" "tlsSecret" "clientCertificates" }}
{{- $_ := set $one "listen" (printf "%s:%d" $any $port) }}
{{- $_ := set $one "advertise" (printf "%s:%d" $own $port) }}
{{- with $service.tlsSecret }}
{{- $tls := dict "cert" (printf "/run/secrets/%s/tls.crt" .) "key" (printf "/run/secrets/%s/tls.key" .) }}
{{- if $service.clientCertificates }}{{ $_ := set $tls "client_ca" (printf "/run/secrets/%s/ca.crt" .) }}{{ end }}
{{- $_ := set $one "tls" $tls }}
{{- end }}
{{- $services = append $services $one }}
{{- end }}
{{- $limits := dict "settle_time" (printf "%ds" (int .Values.drain.settle)) "drain_timeout" (printf "%ds" (int .Values.drain.requests)) "stop_timeout" (printf "%ds" (int .Values.drain.stop)) }}
{{- $file := dict "etcd" $etcd "registry" .Values.registry "services" $services }}
{{- $_ := set $file "admin" (dict "listen" "unix:/run/leasehold/admin.sock") }}
{{- $_ := set $file "metrics" (dict "listen" (printf "%s:%d" $any (int .Values.metrics.port))) }}
{{- $_ := set $file "defaults" (dict "limits" $limits) }}
{{- range $key, $_ := .Values.configuration }}
{{- if hasKey $file $key }}{{ fail (printf "configuration.%s: the chart sets this key" $key) }}{{ end }}
{{- end }}
{{- toYaml (merge $file .Values.configuration) }}
{{- end }}

{{- /* Secrets that are mounted, each once: the volume, the folder under /run/secrets, and the Secret. */ -}}
{{- define "leasehold.secrets" -}}
{{- $names := concat .Values.secrets (list) }}
{{- range .Values.services }}{{ if .tlsSecret }}{{ $names = append $names .tlsSecret }}{{ end }}{{ end }}
{{- with .Values.etcd }}
{{- if .passwordSecret }}
- { volume: etcd-password, mount: etcd-password, secret: {{ .passwordSecret }} }
{{- end }}
{{- if .tlsSecret }}
- { volume: etcd-tls, mount: etcd-tls, secret: {{ .tlsSecret }} }
{{- end }}
{{- end }}
{{- range $index, $name := uniq $names }}
{{- if has $name (list "etcd-password" "etcd-tls") }}{{ fail (printf "secrets: %s is the folder of a Secret of etcd; give this Secret another name" $name) }}{{ end }}
- { volume: secret-{{ $index }}, mount: {{ $name }}, secret: {{ $name }} }
{{- end }}
{{- end }}

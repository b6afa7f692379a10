// Package services is tests of what needs PostgreSQL, Redis, nginx, RabbitMQ and etcd, with the
// usual clients, neither a daemon nor root: services for one test and for all of the package, a
// database that is made once and copied, replicas, a cluster, and a test that reaches its database
// and nothing else.
package services

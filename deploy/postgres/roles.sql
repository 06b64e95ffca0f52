-- Two roles for the service's database: one that owns the schema and migrates it, and one that the service runs as, which can
-- neither change the schema nor rewrite the log.
--
--   createdb allocator
--   psql -v ON_ERROR_STOP=1 -v owner=allocator_owner -v service=allocator_service -d allocator -f deploy/postgres/roles.sql
--   psql -d allocator -c '\password allocator_owner' -c '\password allocator_service'
--   resource-allocator migrate --database-url postgres://allocator_owner@…/allocator
--   psql … -f deploy/postgres/roles.sql                       once more, for what the migrations made
--   resource-allocator serve --no-migrate --database-url postgres://allocator_service@…/allocator
--
-- It is run by a superuser, or by one who may make roles and owns the database. It may be run again at any time, and is after
-- each migration.

SELECT format('CREATE ROLE %I LOGIN', :'owner')
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'owner')
\gexec
SELECT format('CREATE ROLE %I LOGIN', :'service')
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'service')
\gexec

-- Nobody else.
SELECT format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database())
\gexec
SELECT format('GRANT CONNECT ON DATABASE %I TO %I, %I', current_database(), :'owner', :'service')
\gexec
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO :"owner";
GRANT USAGE ON SCHEMA public TO :"service";

-- Rows, not tables: no TRUNCATE, which would pass by the triggers that guard them, no REFERENCES, no TRIGGER. What a later
-- migration makes has the same.
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO :"service";
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO :"service";

-- The log is added to, and its old end is dropped by retention. The pool's row is one for all. What was migrated is the owner's to say.
SELECT format('REVOKE %s ON %s FROM %I', taken.rights, taken.name, :'service')
FROM (VALUES ('UPDATE', 'allocation_events'), ('INSERT, DELETE', 'pools'), ('INSERT, UPDATE, DELETE', '_sqlx_migrations'))
    AS taken (rights, name)
WHERE to_regclass(taken.name) IS NOT NULL
\gexec

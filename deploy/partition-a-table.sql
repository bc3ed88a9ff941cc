-- Turns a plain table of readings into one with partitions, while the service goes on writing.
--
--     psql --set ON_ERROR_STOP=1 --file deploy/partition-a-table.sql postgresql://OWNER@HOST/DATABASE
--     ingest schema adopt --yes
--     ingest housekeeping run
--
-- Run it as the role that owns the table. docs/run/database.md ("Partitions for a plain table") says
-- when to use it, what waits meanwhile, and what to do if it stops. No reading is moved: the old
-- table becomes the first partition, whole. Its end is the end of a day or month that lies ahead of
-- all readings. It may be run again after any error: what was done is read from the catalog.

-- Your values. Names are written as in SQL.
set recipe.readings = 'readings';
set recipe.ts = 'ts';
set recipe.span = 'day';      -- or 'month': the partition_span of the service
set recipe.ahead = '1 day';   -- how far ahead of now a reading may be: its ts_ahead_s_max

-- Who waits for the table makes all others wait who come later. So it waits for 2 s, lets the others
-- go first, and tries again. An autovacuum gives way after a second (deadlock_timeout).
set lock_timeout = '2s';
set statement_timeout = 0;
-- Step 1 stores a time as a text, and step 3 reads it: some zones have names that are read wrongly.
set timezone = 'UTC';
set datestyle = 'ISO';

create or replace function pg_temp.lock_alone() returns void language plpgsql as $$
declare
    holders text;
begin
    for attempt in 1..40 loop
        begin
            execute format('lock table %s in access exclusive mode',
                           to_regclass(current_setting('recipe.readings')));
            return;
        exception when lock_not_available or deadlock_detected then
            null;
        end;
        perform pg_sleep(1);
    end loop;
    select string_agg(format('%s (process %s, %s)', application_name, pid, state), ', ')
    into holders from pg_stat_activity where pid <> pg_backend_pid() and pid in (
        select pid from pg_locks where relation = to_regclass(current_setting('recipe.readings')));
    raise exception 'the table was in use for two minutes, by: %', holders
        using hint = 'End these, and run it again.';
end $$;

-- What would not follow to the new table, or would be read whole under a lock.
create or replace function pg_temp.refuse() returns void language plpgsql as $$
declare
    reasons text;
begin
    if to_regclass(current_setting('recipe.readings')) is null then
        raise exception 'there is no table % that this role can see',
            current_setting('recipe.readings');
    end if;
    select string_agg(reason, '; ') into reasons
    from pg_class c join pg_namespace n on n.oid = c.relnamespace cross join lateral (values
        ('it is not a plain table, or has partitions already', c.relkind <> 'r'),
        ('it is a hypertable: TimescaleDB makes its chunks by itself',
         exists (select from pg_trigger where tgrelid = c.oid and tgname = 'ts_insert_blocker')),
        ('only its owner may do that', not pg_has_role(c.relowner, 'USAGE')),
        ('this role may not create tables in its schema',
         not has_schema_privilege(n.oid, 'CREATE')),
        ('it is unlogged or temporary: alter table .. set logged', c.relpersistence <> 'p'),
        ('it was made of a type: alter table .. not of', c.reloftype <> 0),
        ('it has row security: drop its policies, and create them again afterwards',
         c.relrowsecurity or exists (select from pg_policy where polrelid = c.oid)),
        ('it inherits, or tables inherit from it: alter table .. no inherit',
         exists (select from pg_inherits where c.oid in (inhparent, inhrelid))),
        ((select 'it has triggers, which you drop and create again on the new table: '
                 || string_agg(tgname, ', ') from pg_trigger
          where tgrelid = c.oid and not tgisinternal
          and tgname not in ('ingest_rollup_mark', 'ts_insert_blocker')), true),
        ((select 'it has rules, which you drop: ' || string_agg(rulename, ', ')
          from pg_rewrite where ev_class = c.oid and c.relkind = 'r'), true),
        ((select 'foreign keys belong to it, which you drop and add again afterwards: '
                 || string_agg(conname, ', ') from pg_constraint
          where contype = 'f' and c.oid in (conrelid, confrelid)), true),
        ((select 'it is published: take it out, and add it again afterwards: '
                 || string_agg(pubname, ', ') from pg_publication_tables
          where schemaname = n.nspname and tablename = c.relname), true),
        ((select 'other objects depend on it, and would go on with the old part alone; drop them, '
                 'and create them again afterwards: '
                 || string_agg(distinct pg_describe_object(classid, objid, objsubid), ', ')
          from pg_depend where deptype = 'n' and (refclassid = 'pg_type'::regclass
              and refobjid in (c.reltype, (select typarray from pg_type where oid = c.reltype))
              or refclassid = 'pg_class'::regclass and refobjid = c.oid
              and classid in ('pg_rewrite'::regclass, 'pg_proc'::regclass))), true),
        ((select 'a unique index without the time cannot be kept; drop it: '
                 || string_agg(indexrelid::regclass::text, ', ') from pg_index
          where indrelid = c.oid and indisunique and not (
              select attnum from pg_attribute
              where attrelid = c.oid and attname = current_setting('recipe.ts'))
              = any (indkey[0:indnkeyatts - 1])), true),
        ((select 'it has exclusion constraints, which you drop: ' || string_agg(conname, ', ')
          from pg_constraint where conrelid = c.oid and contype = 'x'), true),
        ((select 'constraints are NOT VALID or NO INHERIT; validate or drop them: '
                 || string_agg(conname, ', ') from pg_constraint
          where conrelid = c.oid and conname <> 'ingest_partition_until'
          and contype in ('c', 'n') and (not convalidated or connoinherit)), true),
        ((select 'columns are numbered by a sequence, which the old part would take with it; drop '
                 'their identity or default: ' || string_agg(attname, ', ')
          from pg_attribute a where attrelid = c.oid and attnum > 0 and not attisdropped
          and (attidentity <> '' or exists (
              select from pg_depend d join pg_class s on s.oid = d.objid and s.relkind = 'S'
              where d.refobjid = c.oid and d.refobjsubid = a.attnum
              and d.deptype in ('a', 'i')))), true)
    ) as found (reason, holds)
    where c.oid = to_regclass(current_setting('recipe.readings')) and holds and reason is not null;
    if reasons <> '' then
        raise exception '% cannot be partitioned: %', current_setting('recipe.readings'), reasons;
    end if;
end $$;

-- The constraint of step 1: `checked` is whether all rows were compared with it.
create or replace function pg_temp.begun(out until timestamptz, out checked boolean)
language sql as $$
    select (regexp_match(pg_get_constraintdef(oid), '''([^'']+)''::timestamp'))[1]::timestamptz,
           convalidated
    from pg_constraint where conname = 'ingest_partition_until'
    and conrelid = to_regclass(current_setting('recipe.readings'))
$$;

-- Step 1: the table takes only readings from before `until`. It is locked for some milliseconds.
do $$
declare
    readings regclass := to_regclass(current_setting('recipe.readings'));
    ahead timestamptz := now() + current_setting('recipe.ahead')::interval;
    newest timestamptz;
    until timestamptz := (pg_temp.begun()).until;
begin
    perform pg_temp.refuse();
    execute format('select max(%I) from %s', current_setting('recipe.ts'), readings) into newest;
    if until > greatest(newest, ahead) then
        raise notice 'an earlier run has begun with this: it is continued';
        return;
    end if;
    -- You have a day for the next steps: after it a new reading may be later than `until`.
    until := (date_trunc(current_setting('recipe.span'),
                         greatest(newest, ahead + interval '1 day') at time zone 'UTC')
              + ('1 ' || current_setting('recipe.span'))::interval) at time zone 'UTC';
    if until > now() + interval '400 days' then
        raise exception 'all readings until % would go into the old part', until
            using hint = 'Delete or move the readings of the future, or lower ts_ahead_s_max.';
    end if;
    perform pg_temp.lock_alone();
    execute format('alter table %s drop constraint if exists ingest_partition_until, '
                   'add constraint ingest_partition_until check (%I < timestamptz %L) not valid',
                   readings, current_setting('recipe.ts'), until);
    raise notice 'step 1 of 3: the table takes readings before % only', until;
end $$;

-- Step 2: the server compares all rows with it. It reads the table once; others read and write.
do $$
begin
    perform set_config('lock_timeout', '30s', true);  -- it makes nobody wait
    execute format('alter table %s validate constraint ingest_partition_until',
                   to_regclass(current_setting('recipe.readings')));
    raise notice 'step 2 of 3: all rows were compared with that time';
end $$;

-- Step 3: a new table takes its name, keys, indexes, owner, rights and comments. It is locked for
-- some milliseconds: because of the constraint its rows are not read again. After 2 s it is undone.
begin;
select pg_temp.lock_alone();
set local statement_timeout = '2s';
do $$
declare
    readings oid := to_regclass(current_setting('recipe.readings'));
    until timestamptz;
    named text;     -- the new table, as SQL names it
    old text;       -- the old one
    owner name;
    tablespace text;
    comment text;
    statement text;
begin
    perform pg_temp.refuse();
    if (pg_temp.begun()).checked is not true then
        raise exception 'another session has changed the table: run it again';
    end if;
    until := (pg_temp.begun()).until;
    select format('%I.%I', n.nspname, c.relname), pg_get_userbyid(c.relowner),
           format('%I.%I', n.nspname, left(c.relname, 47) || '_before_'
                  || to_char(until at time zone 'UTC', 'YYYYMMDD')),
           (select format(' tablespace %I', t.spcname) from pg_tablespace t
            where t.oid = c.reltablespace),
           format('comment on table %I.%I is %L', n.nspname, c.relname, obj_description(c.oid))
    into named, owner, old, tablespace, comment
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = readings;

    -- What is to be made on the new table, in the words of the old one.
    create temp table recipe_indexes on commit drop as
    select format('alter index %I.%I rename to %I', n.nspname, x.relname,
                  left(c.relname, 37) || '_before_' || to_char(until at time zone 'UTC', 'YYYYMMDD')
                  || '_' || row_number() over (order by x.oid)) as rename,
           case when k.oid is null then pg_get_indexdef(x.oid)
                else format('alter table %s add constraint %I %s', named, k.conname,
                            pg_get_constraintdef(k.oid)) end as make,
           format('comment on index %I.%I is %L', n.nspname, x.relname,
                  obj_description(x.oid, 'pg_class')) as remark,
           row_number() over (order by k.contype = 'p' desc nulls last, x.oid) as position
    from pg_index i join pg_class x on x.oid = i.indexrelid join pg_class c on c.oid = i.indrelid
    join pg_namespace n on n.oid = x.relnamespace
    left join pg_constraint k on k.conindid = x.oid and k.conrelid = i.indrelid
        and k.contype in ('p', 'u')
    where i.indrelid = readings and i.indisvalid;
    create temp view recipe_rights as
    select g.oid, privilege_type || coalesce(' (' || quote_ident(attribute) || ')', '') as what,
           case when grantee = 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end
               as whom,
           case when is_grantable then ' with grant option' else '' end as and_more
    from (select c.oid, c.relowner, null as attribute, a.* from pg_class c, aclexplode(relacl) a
          union all
          select c.oid, c.relowner, attname, a.* from pg_class c
          join pg_attribute t on t.attrelid = c.oid and not attisdropped, aclexplode(attacl) a
         ) g where grantee <> relowner;
    create temp table recipe_grants on commit drop as
    select format('grant %s on %s to %s%s', what, named, whom, and_more) as make
    from recipe_rights where oid = readings;

    execute format('alter table %s rename to %I', named, (parse_ident(old))[2]);
    for statement in select rename from recipe_indexes loop
        execute statement;
    end loop;
    execute format('create table %s (like %s including all excluding indexes excluding identity) '
                   'partition by range (%I)%s', named, old, current_setting('recipe.ts'),
                   tablespace);
    execute format('alter table %s drop constraint ingest_partition_until', named);
    execute format('alter table %s owner to %I', named, owner);
    -- Nobody gets a right that default privileges would add.
    for statement in select format('revoke %s on %s from %s', what, named, whom)
                     from recipe_rights where oid = named::regclass loop
        execute statement;
    end loop;
    drop view recipe_rights;
    for statement in select make from recipe_grants loop
        execute statement;
    end loop;
    for statement in select unnest(array[make, remark]) from recipe_indexes order by position loop
        execute statement;
    end loop;
    execute comment;
    execute format('alter table %s attach partition %s for values from (minvalue) to (%L)',
                   named, old, until);
    execute format('alter table %s drop constraint ingest_partition_until', old);
    raise notice 'step 3 of 3: % has partitions, % first. Now: ingest schema adopt --yes', named, old;
end $$;
commit;

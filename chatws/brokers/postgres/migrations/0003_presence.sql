-- Which node has which users online, and until when that counts.
-- Programs that know migration 1 or a later one can work with it.

CREATE TABLE chatws.nodes (
    node text PRIMARY KEY,
    until double precision NOT NULL
);
COMMENT ON COLUMN chatws.nodes.until IS 'seconds since 1970';

CREATE TABLE chatws.leases (
    node text NOT NULL REFERENCES chatws.nodes ON DELETE CASCADE,
    -- as the node wrote it: a backslash is two, a NUL is \0
    user_key text NOT NULL,
    user_number bigint,
    tabs integer NOT NULL,
    PRIMARY KEY (node, user_key)
);
CREATE INDEX leases_by_user ON chatws.leases (user_key);

CREATE VIEW chatws.online_agents AS
    SELECT replace(l.user_key, '\\', '\') AS user_id, max(l.user_number) AS user_number, sum(l.tabs)::bigint AS tabs
    FROM chatws.leases l JOIN chatws.nodes n USING (node)
    WHERE n.until > extract(epoch FROM clock_timestamp())
    GROUP BY l.user_key;
COMMENT ON VIEW chatws.online_agents IS
    'The agents online on any node. user_number is the id where that is an integer; tabs is 0 within the grace.';

-- See Broker.lease. Users are named by their user_key.
--   p_tabs  [[user_key, user_number, tabs]]; tabs is null for those that have left
CREATE FUNCTION chatws.lease(p_node text, p_tabs json, p_seconds double precision, p_now double precision)
RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_now double precision;
    v_dead text[];
    v_touched text[];
    v_before text[];
    v_after text[];
BEGIN
    PERFORM chatws._need_read_committed();
    -- One at a time, or two nodes that lose the same user would each believe that the other has it still.
    PERFORM pg_advisory_xact_lock(1667785076, 3);
    v_now := coalesce(p_now, extract(epoch FROM clock_timestamp()));
    INSERT INTO chatws.nodes (node, until) VALUES (p_node, v_now + p_seconds)
        ON CONFLICT (node) DO UPDATE SET until = EXCLUDED.until;
    v_dead := ARRAY(SELECT n.node FROM chatws.nodes n WHERE n.until <= v_now AND n.node <> p_node);
    v_touched := ARRAY(
        SELECT one ->> 0 FROM json_array_elements(p_tabs) one
        UNION SELECT l.user_key FROM chatws.leases l WHERE l.node = ANY (v_dead));
    v_before := ARRAY(SELECT DISTINCT l.user_key FROM chatws.leases l WHERE l.user_key = ANY (v_touched));
    DELETE FROM chatws.nodes n WHERE n.node = ANY (v_dead);
    DELETE FROM chatws.leases l USING json_array_elements(p_tabs) one
        WHERE l.node = p_node AND l.user_key = one ->> 0 AND one ->> 2 IS NULL;
    INSERT INTO chatws.leases AS l (node, user_key, user_number, tabs)
        SELECT p_node, one ->> 0, (one ->> 1)::bigint, (one ->> 2)::integer
        FROM json_array_elements(p_tabs) one WHERE one ->> 2 IS NOT NULL
        ON CONFLICT (node, user_key) DO UPDATE SET tabs = EXCLUDED.tabs WHERE l.tabs <> EXCLUDED.tabs;
    v_after := ARRAY(SELECT DISTINCT l.user_key FROM chatws.leases l WHERE l.user_key = ANY (v_touched));
    RETURN json_build_object(
        'came', (SELECT coalesce(json_agg(one), '[]') FROM (SELECT unnest(v_after) EXCEPT SELECT unnest(v_before)) s (one)),
        'went', (SELECT coalesce(json_agg(one), '[]') FROM (SELECT unnest(v_before) EXCEPT SELECT unnest(v_after)) s (one)),
        'held', (SELECT count(*) FROM chatws.leases l WHERE l.node = p_node),
        'online', (SELECT count(DISTINCT l.user_key) FROM chatws.leases l));
END
$$;

-- See Broker.online.
CREATE FUNCTION chatws.online(p_now double precision) RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT coalesce(json_agg(DISTINCT l.user_key), '[]')::text
    FROM chatws.leases l JOIN chatws.nodes n USING (node)
    WHERE n.until > coalesce(p_now, extract(epoch FROM clock_timestamp()))
$$;

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA chatws FROM PUBLIC;

-- What an application's role needs.
CREATE FUNCTION chatws.allow(p_role name) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_function regprocedure;
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA chatws TO %I', p_role);
    EXECUTE format('GRANT SELECT ON chatws.online_agents TO %I', p_role);
    FOR v_function IN
        SELECT p.oid FROM pg_proc p
        WHERE p.pronamespace = 'chatws'::regnamespace AND p.proname IN ('publish', 'revoke', 'disconnect')
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', v_function, p_role);
    END LOOP;
END
$$;
COMMENT ON FUNCTION chatws.allow(name) IS 'Let a role publish, revoke, disconnect, and see who is online.';
REVOKE EXECUTE ON FUNCTION chatws.allow(name) FROM PUBLIC;

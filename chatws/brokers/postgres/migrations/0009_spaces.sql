-- Leases of several spaces (chatws.brokers.interface), and data of members.
-- Programs that know migration 4 or a later one can work with it.
--
-- A node of an earlier version calls the functions without a space, which are about the agents. It does not see other
-- members, and `chatws.nodes_without` names it.

SELECT pg_advisory_xact_lock(1667785076, 3);  -- no node renews leases meanwhile

ALTER TABLE chatws.leases DROP CONSTRAINT leases_node_fkey, DROP CONSTRAINT leases_pkey,
    ADD COLUMN space text NOT NULL DEFAULT 'agents';
ALTER TABLE chatws.nodes DROP CONSTRAINT nodes_pkey,
    ADD COLUMN space text NOT NULL DEFAULT 'agents', ADD COLUMN held bigint NOT NULL DEFAULT 0,
    ADD PRIMARY KEY (space, node);
ALTER TABLE chatws.leases ADD PRIMARY KEY (space, node, user_key),
    ADD FOREIGN KEY (space, node) REFERENCES chatws.nodes ON DELETE CASCADE;
DROP INDEX chatws.leases_by_user;
CREATE INDEX leases_by_user ON chatws.leases (space, user_key);
COMMENT ON COLUMN chatws.nodes.held IS 'number of its leases';

CREATE TABLE chatws.spaces (
    space text PRIMARY KEY,
    online bigint NOT NULL
);
COMMENT ON TABLE chatws.spaces IS 'Number of members that any node holds, so that a renewal need not count them.';

CREATE TABLE chatws.member_data (
    space text NOT NULL,
    user_key text NOT NULL,
    data text NOT NULL,
    expires_at double precision NOT NULL,
    PRIMARY KEY (space, user_key)
);
CREATE INDEX member_data_by_expiry ON chatws.member_data (expires_at);

UPDATE chatws.nodes n SET held = (SELECT count(*) FROM chatws.leases l WHERE l.node = n.node);
INSERT INTO chatws.spaces SELECT 'agents', count(DISTINCT user_key) FROM chatws.leases;

CREATE OR REPLACE VIEW chatws.online_agents AS
    SELECT replace(l.user_key, '\\', '\') AS user_id, max(l.user_number) AS user_number,
        sum(l.connection_count)::bigint AS connection_count
    FROM chatws.leases l JOIN chatws.nodes n USING (space, node)
    WHERE l.space = 'agents' AND n.expires_at > extract(epoch FROM clock_timestamp())
    GROUP BY l.user_key;

-- See Broker.lease. Members are named by their user_key. The cost depends on the changes only.
--   p_connections  [[user_key, user_number, connection_count]]; connection_count is null for members that have left
CREATE FUNCTION chatws.renew_leases(
    p_space text, p_node text, p_connections json, p_seconds double precision, p_now double precision
) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_now double precision;
    v_dead text[];
    v_touched text[];
    v_before text[];
    v_after text[];
    v_held_before bigint;
    v_held bigint;
    v_online bigint;
BEGIN
    PERFORM chatws._require_read_committed();
    -- One call at a time: two nodes that lose the same member at once would both report no change.
    PERFORM pg_advisory_xact_lock(1667785076, 3);
    v_now := coalesce(p_now, extract(epoch FROM clock_timestamp()));
    v_dead := ARRAY(SELECT n.node FROM chatws.nodes n
        WHERE n.space = p_space AND n.expires_at <= v_now AND n.node <> p_node);
    v_touched := ARRAY(
        SELECT entry ->> 0 FROM json_array_elements(p_connections) entry
        UNION SELECT l.user_key FROM chatws.leases l WHERE l.space = p_space AND l.node = ANY (v_dead));
    v_before := ARRAY(SELECT DISTINCT l.user_key FROM chatws.leases l
        WHERE l.space = p_space AND l.user_key = ANY (v_touched));
    v_held_before := (SELECT count(*) FROM chatws.leases l
        WHERE l.space = p_space AND l.node = p_node AND l.user_key = ANY (v_touched));
    INSERT INTO chatws.nodes (space, node, expires_at) VALUES (p_space, p_node, v_now + p_seconds)
        ON CONFLICT (space, node) DO UPDATE SET expires_at = EXCLUDED.expires_at;
    DELETE FROM chatws.nodes n WHERE n.space = p_space AND n.node = ANY (v_dead);
    DELETE FROM chatws.leases l USING json_array_elements(p_connections) entry
        WHERE l.space = p_space AND l.node = p_node AND l.user_key = entry ->> 0 AND entry ->> 2 IS NULL;
    INSERT INTO chatws.leases AS l (space, node, user_key, user_number, connection_count)
        SELECT p_space, p_node, entry ->> 0, (entry ->> 1)::bigint, (entry ->> 2)::integer
        FROM json_array_elements(p_connections) entry WHERE entry ->> 2 IS NOT NULL
        ON CONFLICT (space, node, user_key) DO UPDATE SET connection_count = EXCLUDED.connection_count
            WHERE l.connection_count <> EXCLUDED.connection_count;
    v_after := ARRAY(SELECT DISTINCT l.user_key FROM chatws.leases l
        WHERE l.space = p_space AND l.user_key = ANY (v_touched));
    IF cardinality(v_touched) > 0 THEN
        UPDATE chatws.nodes n SET held = n.held - v_held_before + (SELECT count(*) FROM chatws.leases l
                WHERE l.space = p_space AND l.node = p_node AND l.user_key = ANY (v_touched))
            WHERE n.space = p_space AND n.node = p_node;
    END IF;
    INSERT INTO chatws.spaces AS s (space, online) VALUES (p_space, cardinality(v_after))
        ON CONFLICT (space) DO UPDATE SET online = s.online - cardinality(v_before) + cardinality(v_after)
            WHERE cardinality(v_before) <> cardinality(v_after);
    SELECT n.held INTO v_held FROM chatws.nodes n WHERE n.space = p_space AND n.node = p_node;
    SELECT s.online INTO v_online FROM chatws.spaces s WHERE s.space = p_space;
    RETURN json_build_object(
        'joined', (SELECT coalesce(json_agg(entry), '[]')
            FROM (SELECT unnest(v_after) EXCEPT SELECT unnest(v_before)) s (entry)),
        'left', (SELECT coalesce(json_agg(entry), '[]')
            FROM (SELECT unnest(v_before) EXCEPT SELECT unnest(v_after)) s (entry)),
        'held', v_held,
        'online', v_online);
END
$$;

-- For nodes of earlier versions.
CREATE OR REPLACE FUNCTION chatws.renew_leases(
    p_node text, p_connections json, p_seconds double precision, p_now double precision
) RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT chatws.renew_leases('agents', p_node, p_connections, p_seconds, p_now)
$$;

-- See Broker.online.
CREATE FUNCTION chatws.online(p_space text, p_now double precision) RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT coalesce(json_agg(DISTINCT l.user_key), '[]')::text
    FROM chatws.leases l JOIN chatws.nodes n USING (space, node)
    WHERE l.space = p_space AND n.expires_at > coalesce(p_now, extract(epoch FROM clock_timestamp()))
$$;

CREATE OR REPLACE FUNCTION chatws.online(p_now double precision) RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT chatws.online('agents', p_now)
$$;

-- See Broker.nodes_without.
CREATE FUNCTION chatws.nodes_without(p_space text, p_now double precision) RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT coalesce(json_agg(n.node ORDER BY n.node), '[]')::text
    FROM chatws.nodes n, coalesce(p_now, extract(epoch FROM clock_timestamp())) t (now)
    WHERE n.space = 'agents' AND n.expires_at > t.now AND NOT EXISTS (
        SELECT FROM chatws.nodes o WHERE o.space = p_space AND o.node = n.node AND o.expires_at > t.now)
$$;

-- See Broker.set_data. `p_data` is NULL to remove it.
CREATE FUNCTION chatws.set_data(
    p_space text, p_member text, p_data text, p_seconds double precision, p_now double precision
) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_now double precision;
    v_before text;
BEGIN
    PERFORM chatws._require_read_committed();
    -- One call at a time: of two nodes that store the same data, one has changed it.
    PERFORM pg_advisory_xact_lock(1667785076, 4);
    v_now := coalesce(p_now, extract(epoch FROM clock_timestamp()));
    DELETE FROM chatws.member_data d WHERE d.expires_at <= v_now;
    SELECT d.data INTO v_before FROM chatws.member_data d WHERE d.space = p_space AND d.user_key = p_member;
    IF p_data IS NULL THEN
        DELETE FROM chatws.member_data d WHERE d.space = p_space AND d.user_key = p_member;
    ELSE
        INSERT INTO chatws.member_data (space, user_key, data, expires_at)
            VALUES (p_space, p_member, p_data, v_now + p_seconds)
            ON CONFLICT (space, user_key) DO UPDATE SET data = EXCLUDED.data, expires_at = EXCLUDED.expires_at;
    END IF;
    RETURN v_before IS DISTINCT FROM p_data;
END
$$;

-- See Broker.data: [[user_key, data, expires_at]].
CREATE FUNCTION chatws.data(p_space text, p_now double precision) RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT coalesce(json_agg(json_build_array(d.user_key, d.data, d.expires_at)), '[]')::text
    FROM chatws.member_data d
    WHERE d.space = p_space AND d.expires_at > coalesce(p_now, extract(epoch FROM clock_timestamp()))
$$;

-- `status_set` is a reply of the server.
DO $$
BEGIN
    EXECUTE replace(
        pg_get_functiondef('chatws._publish(text, text, jsonb, text, text, boolean)'::regprocedure),
        $q$'presence', 'error'$q$, $q$'presence', 'status_set', 'error'$q$);
END
$$;

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA chatws FROM PUBLIC;
